"""What one authz may hand out alone while Valkey is down: a share of what each account was last known to have left."""

from collections import OrderedDict
from dataclasses import replace

from authz.standing import Standing

_MOST_KEYS = 100_000


class Shares:
    """Remembers each key's last standing; from `open` on, gives out the share and no more."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._last: OrderedDict[str, Standing] = OrderedDict()
        self._left: dict[str, tuple[int | None, int | None]] = {}  # by account: requests, tokens

    def remember(self, key_id: str, standing: Standing) -> None:
        self._last[key_id] = standing
        if len(self._last) > _MOST_KEYS:
            self._last.popitem(last=False)

    def open(self) -> None:
        """An outage begins: every account has its share anew."""
        self._left.clear()

    def take(self, account: str, key_id: str, tokens: int) -> Standing | None:
        """The standing after this request, or None when the share is spent or the key is a stranger.

        An account's keys draw on one share, so many keys are not many shares.
        """
        last = self._last.get(key_id)
        if last is None:
            return None
        held_requests, held_tokens = self._left.get(account, (None, None))
        requests_left = self._taken(held_requests, last.requests_remaining, 1)
        tokens_left = self._taken(held_tokens, last.tokens_remaining, tokens)
        if (requests_left or 0) < 0 or (tokens_left or 0) < 0:
            return None
        self._left[account] = (
            held_requests if requests_left is None else requests_left,
            held_tokens if tokens_left is None else tokens_left,
        )
        return replace(last, requests_remaining=requests_left, tokens_remaining=tokens_left)

    def _taken(self, held: int | None, remaining: int | None, amount: int) -> int | None:
        if remaining is None:
            return None
        return (int(remaining * self._share) if held is None else held) - amount
