"""What this process admitted and Valkey must know of: kept here too, so that a Valkey that lost it can be told again.

Reservations are kept until their request must have ended, the requests and tokens of the last minute by the second.
Both are bounded: beyond the bound the oldest are forgotten, which are the likeliest to have ended.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from authz.limits.counter_writes import Change
from authz.limits.plans import Plan
from authz.metrics import AUTHZ_FORGOTTEN

_WINDOW_SECONDS = 61  # as in check.lua


class Reservation(NamedTuple):
    """An admitted request that may not have ended."""

    plan: Plan
    request_id: str
    admitted_ms: int
    ends_ms: int
    tokens: int
    cost: int


class InFlight:
    """Of all accounts."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[str, Reservation] = {}  # by reservation, oldest first
        self._counts: dict[int, dict[tuple[str, str], int]] = {}  # second -> (account, rate hash) -> amount
        self._new: dict[str, list[Change]] = defaultdict(list)  # admitted without Valkey, which must hear of it

    def __len__(self) -> int:
        return len(self._held)

    @property
    def unknown(self) -> bool:
        """Whether Valkey does not know something yet."""
        return bool(self._new)

    def add(self, reservation: str, held: Reservation, *, known: bool) -> None:
        """`known`: Valkey has it. Without a reservation only the request itself is counted."""
        if not held.plan.rules:
            return
        if reservation:
            self._held[reservation] = held
            if not known:
                self._new[held.plan.record.account].append(_hold(reservation, held))
            if len(self._held) > self._most:
                del self._held[next(iter(self._held))]
                AUTHZ_FORGOTTEN.inc()
        second = held.admitted_ms // 1000
        counts = self._counts.get(second)
        if counts is None:
            counts = self._counts[second] = {}
            self._forget(held.admitted_ms)
        account = held.plan.record.account
        for key, by_tokens in held.plan.rates:
            amount = held.tokens if by_tokens else 1
            place = (account, key)
            counts[place] = counts.get(place, 0) + amount
            if not known:
                self._new[account].append(("count", key, second, amount))

    def changes(self, now_ms: int) -> dict[str, list[Change]]:
        """Everything that Valkey must know, by account."""
        self._forget(now_ms)
        found: dict[str, list[Change]] = defaultdict(list)
        for reservation, held in self._held.items():
            if held.ends_ms > now_ms:
                found[held.plan.record.account].append(_hold(reservation, held))
        for second, counts in self._counts.items():
            for (account, key), amount in counts.items():
                found[account].append(("count", key, second, amount))
        return found

    def take_new(self) -> dict[str, list[Change]]:
        """What was admitted without Valkey, by account; from now on it counts as told."""
        found, self._new = self._new, defaultdict(list)
        return found

    def put_back(self, changes: dict[str, list[Change]]) -> None:
        """It was not told after all."""
        for account, each in changes.items():
            self._new[account][:0] = each

    def owners(self, reservations: Iterable[str]) -> dict[str, tuple[str, str]]:
        """The request id and the account of each that may not have ended."""
        found = ((each, self._held[each]) for each in reservations if each in self._held)
        return {each: (held.request_id, held.plan.record.account) for each, held in found}

    def ended(self, reservations: Iterable[str]) -> None:
        """The ledger has their last events: nothing is held for them."""
        for reservation in reservations:
            self._held.pop(reservation, None)

    def _forget(self, now_ms: int) -> None:
        for second in [second for second in self._counts if second <= now_ms // 1000 - _WINDOW_SECONDS]:
            del self._counts[second]
        while self._held:
            oldest = next(iter(self._held))
            if self._held[oldest].ends_ms > now_ms:
                break
            del self._held[oldest]


def _hold(reservation: str, held: Reservation) -> Change:
    amounts = held.plan.amounts(held.admitted_ms // 1000, held.tokens, held.cost)
    return "hold", reservation, held.ends_ms, amounts
