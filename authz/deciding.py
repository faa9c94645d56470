"""The decision: who calls, may it, how much is left. Raises the error the caller is to see."""

import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from authz.asking import Question, scope_for
from authz.credentials import refused
from authz.keys import KeyRecord, KeyRing
from authz.limits import Limits
from authz.standing import Standing
from common import names
from common.errors import Reason, UplionError
from common.identity import Identity
from common.keys import TEST_KEY, ApiKey, MalformedKeyError, digest, parse

_NO_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True)
class Admission:
    """An admitted request: who it is for the router, and what its owner is told."""

    identity: Identity
    standing: Standing


class Decider:
    """Cheap refusals first: the checksum before any lookup, the lookup before any limit."""

    def __init__(
        self,
        keys: KeyRing,
        limits: Limits,
        peppers: Mapping[str, bytes],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._limits = limits
        self._peppers = peppers
        self._any_pepper = next(iter(peppers.values()))
        self._clock = clock

    async def decide(self, question: Question) -> Admission:
        """Raises INVALID_API_KEY, PERMISSION_DENIED, RATE_LIMIT_EXCEEDED, INSUFFICIENT_QUOTA or UNAVAILABLE."""
        scope = scope_for(question.listener)
        try:
            key = parse(question.key_text)
        except MalformedKeyError:
            raise refused() from None
        record = self._keys.cached(key.id)
        if record is None:
            record = await self._keys.find(key.id)
        record = self._verified(key, question.key_text, record)
        if scope not in record.scopes:
            raise UplionError(Reason.PERMISSION_DENIED, f'This needs a key with the scope "{scope}".', scope=scope)
        grant = await self._limits.admit(record, question)
        identity = Identity(
            account=record.account,
            key=record.id,
            reservation=grant.reservation,
            model=question.model,
            tier=names.TIER_DEFAULT,
            max_output_tokens=grant.max_output_tokens,
            deadline_seconds=None,
            request_id=question.request_id,
            scopes=tuple(sorted(record.scopes)) if question.listener == names.LISTENER_ADMIN else (),
        )
        return Admission(identity, grant.standing)

    def _verified(self, key: ApiKey, text: str, record: KeyRecord | None) -> KeyRecord:
        """An unknown id costs the same HMAC as a wrong secret, and gets the same answer."""
        pepper = None if record is None else self._peppers.get(record.pepper_id)
        expected = _NO_DIGEST if record is None else record.digest
        right = hmac.compare_digest(digest(key.secret, pepper or self._any_pepper), expected)
        if record is None or pepper is None or not right or not record.active or text == TEST_KEY:
            raise refused()
        if record.expire_seconds is not None and self._clock() >= record.expire_seconds:
            raise refused("The key has expired.")
        return record
