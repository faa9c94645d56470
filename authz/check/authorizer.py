"""Authorises a request: who calls, whether it may, and how much is left. Raises the error that the caller sees."""

import hmac
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from authz.check.decision_log import DecisionLog
from authz.check.permissions import check_listener, check_restrictions, tier
from authz.credentials.claims import TokenClaims
from authz.credentials.key_record import KeyRecord, owner_id
from authz.credentials.key_ring import KeyRing
from authz.credentials.request_credential import refused
from authz.events.arrivals import Arrivals
from authz.events.last_used import LastUsed
from authz.limits.limiter import Grant, Limiter
from authz.limits.rate_limit_status import RateLimitStatus
from authz.metrics import AUTHZ_SHADOW_REFUSALS
from authz.request_facts import RequestFacts
from common.errors import UplionError
from common.identity import Identity
from common.operations import Kind
from credentials.api_keys import TEST_KEY, ApiKey, MalformedKeyError, digest, parse
from credentials.headers import UNPROVED

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Admission:
    """An admitted request: the identity headers for the router, and the rate limit status for the caller."""

    identity: Identity
    rate_limits: RateLimitStatus


class Tokens(Protocol):
    """Verifies signed tokens; raises INVALID_API_KEY or UNAVAILABLE."""

    async def verify(self, text: str) -> TokenClaims: ...


class Authorizer:
    """Cheap refusals first: the checksum before any lookup, the lookup before any limit."""

    def __init__(
        self,
        keys: KeyRing,
        limits: Limiter,
        peppers: Mapping[str, bytes],
        decisions: DecisionLog,
        last_used: LastUsed,
        arrivals: Arrivals,
        tokens: Tokens | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._limits = limits
        self._peppers = peppers
        any_pepper, self._any_pepper = next(iter(peppers.items()))
        self._no_key = KeyRecord("", "", bytes(32), any_pepper, frozenset(), active=False)
        self._decisions = decisions
        self._last_used = last_used
        self._arrivals = arrivals
        self._tokens = tokens
        self._clock = clock

    async def authorize(self, request: RequestFacts) -> Admission:
        """Raises INVALID_API_KEY, PERMISSION_DENIED, MODEL_NOT_ALLOWED, RATE_LIMIT_EXCEEDED, INSUFFICIENT_QUOTA or
        UNAVAILABLE.
        """
        if self._tokens is not None and request.key_text.count(".") == 2:  # no key holds a dot
            return await self._admit_bearer(await self._tokens.verify(request.key_text), request)
        try:
            key = parse(request.key_text)
        except MalformedKeyError:
            raise refused() from None
        record = self._keys.cached(key.id)
        if record is None:
            record = await self._keys.find(key.id)
        record = self._verified(key, request.key_text, record)
        self._last_used.add(record.id)
        return await self._admit(record, request, record)

    async def _admit_bearer(self, claims: TokenClaims, request: RequestFacts) -> Admission:
        """A token's account must be known here, and active; its limits and its project's hold for all its tokens."""
        name = owner_id(claims.account, claims.project)
        owner = self._keys.cached(name)
        if owner is None:
            owner = await self._keys.find(name)
        if owner is None or not owner.active:
            raise refused(UNPROVED)
        record = msgspec.structs.replace(owner, id=claims.subject_id, scopes=claims.scopes)
        return await self._admit(record, request, owner)

    async def _admit(self, record: KeyRecord, request: RequestFacts, limited: KeyRecord) -> Admission:
        """Checks permissions, and the rules of `limited`, for a caller whose credential is valid."""
        try:
            scopes = check_listener(record, request.listener)
            check_restrictions(record, request)
            served = tier(record, request.tier)
            grant = await self._limits.admit(limited, request)
        except UplionError as error:
            self._decisions.refused(record, request, error)
            raise
        self._arrivals.expect(record.account, grant.reservation)
        if grant.shadows:
            self._note(record, request, grant)
        identity = Identity(
            account=record.account,
            key=record.id,
            reservation=grant.reservation,
            model=request.model,
            tier=served,
            max_output_tokens=grant.max_output_tokens,
            deadline_seconds=grant.deadline_seconds,
            request_id=request.request_id,
            project=record.project,
            capped_by=grant.capped_by,
            holds_slot=grant.holds_slot,
            slots_scarce=grant.slots_scarce,
            scopes=scopes,
            models=record.models if request.kind is Kind.READING else (),
        )
        return Admission(identity, grant.rate_limits)

    def _note(self, record: KeyRecord, request: RequestFacts, grant: Grant) -> None:
        for refusal in grant.shadows:
            limit = refusal.violation.rule.limit
            AUTHZ_SHADOW_REFUSALS.labels(limit.measure, limit.period).inc()
            logger.info(
                "a rule in shadow would have refused",
                extra={"rule": refusal.violation.rule.name, "request_id": request.request_id, "key": record.id},
            )
            self._decisions.shadow(record, request, refusal)

    def _verified(self, key: ApiKey, text: str, record: KeyRecord | None) -> KeyRecord:
        """An unknown id takes the time, and gets the answer, of a wrong secret: no secret matches its record."""
        record = record or self._no_key
        pepper = self._peppers.get(record.pepper_id)
        right = hmac.compare_digest(digest(key.secret, pepper or self._any_pepper), record.digest)
        if not right or pepper is None or not record.active or text == TEST_KEY:
            raise refused()
        if record.expire_seconds is not None and self._clock() >= record.expire_seconds:
            raise refused("The key has expired.")
        return record
