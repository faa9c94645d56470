"""The cache of key records: each is looked up once a minute, and dropped as soon as it is revoked."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from authz.credentials.key_record import CachedRecord, KeyRecord
from authz.errors import DatabaseError
from common.errors import Reason, UplionError

logger = logging.getLogger(__name__)
_READS_AFTER_INVALIDATION = 3


class Store(Protocol):
    """The database of keys and of the accounts of tokens; raises DatabaseError."""

    async def key(self, key_id: str) -> KeyRecord | None: ...


class SharedKeyCache(Protocol):
    """A cache that the authz processes share; it never raises, and may lose records."""

    async def get(self, key_id: str) -> CachedRecord | None: ...
    async def put(self, cached: CachedRecord) -> None: ...
    async def drop(self, kind: str, name: str) -> None: ...


@dataclass(slots=True)
class _Known:
    record: KeyRecord
    read_seconds: float


@dataclass(frozen=True, slots=True)
class KeyRingLimits:
    """How long records are valid (seconds) and how many are kept."""

    ttl: float = 60.0
    stale: float = 600.0
    unknown_ttl: float = 5.0
    known: int = 100_000
    unknown: int = 50_000
    lookups: int = 2_000


class KeyRing:
    """Memory, then the shared cache, then Postgres. Invented keys take bounded memory and bounded queries."""

    def __init__(
        self, store: Store, shared: SharedKeyCache, limits: KeyRingLimits, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._shared = shared
        self._limits = limits
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._flights: dict[str, asyncio.Future[KeyRecord | None]] = {}
        self._invalidations = 0

    def cached(self, key_id: str) -> KeyRecord | None:
        """The record if it is in memory and fresh: the hot path, without an await."""
        found = self._known.get(key_id)
        if found is not None and self._clock() - found.read_seconds < self._limits.ttl:
            return found.record
        return None

    async def find(self, key_id: str) -> KeyRecord | None:
        """The record, or None for an unknown key; raises UNAVAILABLE when the key cannot be looked up."""
        while True:
            record = self.cached(key_id)
            if record is not None:
                return record
            unknown_until = self._unknown.get(key_id)
            if unknown_until is not None:
                if self._clock() < unknown_until:
                    return None
                del self._unknown[key_id]
            flight = self._flights.get(key_id)
            if flight is None:
                return await self._look_up_once(key_id)
            await asyncio.wait([flight])  # unlike await, it does not cancel the lookup that others share
            if not flight.cancelled():
                return flight.result()

    async def invalidate(self, kind: str, name: str) -> None:
        """Drops a key (`kind` "key") or an account's keys ("account"), here and in the shared cache. Idempotent."""
        self._drop(kind, name)
        await self._shared.drop(kind, name)
        self._drop(kind, name)  # what a lookup read from the shared cache meanwhile

    def expire_all(self) -> None:
        """After a gap in which revocations may have been missed: every key is looked up again before its next use."""
        self._invalidations += 1
        for known in self._known.values():
            known.read_seconds = min(known.read_seconds, self._clock() - self._limits.ttl)

    def __len__(self) -> int:
        return len(self._known) + len(self._unknown)

    def _drop(self, kind: str, name: str) -> None:
        self._invalidations += 1
        if kind == "key":
            self._known.pop(name, None)
            self._unknown.pop(name, None)
        elif kind == "account":
            for key_id in [each for each, known in self._known.items() if known.record.account == name]:
                del self._known[key_id]

    async def _look_up_once(self, key_id: str) -> KeyRecord | None:
        """Looks up for every caller that asks meanwhile (single flight)."""
        if len(self._flights) >= self._limits.lookups:
            raise UplionError(Reason.UNAVAILABLE, "Too many unknown keys at once. Try again.", retry_after_seconds=1)
        flight: asyncio.Future[KeyRecord | None] = asyncio.get_running_loop().create_future()
        self._flights[key_id] = flight
        try:
            record = await self._look_up(key_id)
            flight.set_result(record)
        except UplionError as problem:
            flight.set_exception(problem)
            flight.exception()  # marks it as retrieved: no other caller may wait
            raise
        finally:
            del self._flights[key_id]
            if not flight.done():
                flight.cancel()
        return record

    async def _look_up(self, key_id: str) -> KeyRecord | None:
        for _ in range(_READS_AFTER_INVALIDATION):
            seen = self._invalidations
            cached = await self._shared.get(key_id)
            # Another process read it, by its own clock: one that is from the future was not read lately.
            if cached is not None and 0 <= self._clock() - cached.read_seconds < self._limits.ttl:
                if seen == self._invalidations:
                    self._keep(cached)
                    return cached.record
                continue
            read_seconds = self._clock()
            try:
                record = await self._store.key(key_id)
            except DatabaseError as problem:
                return self._stale(key_id, problem)
            if seen != self._invalidations:
                continue  # it may have been revoked during the read: read again
            if record is None:
                self._keep_unknown(key_id)
                return None
            self._keep(CachedRecord(record, read_seconds))
            await self._shared.put(CachedRecord(record, read_seconds))
            return record
        raise UplionError(Reason.UNAVAILABLE, "Keys are changing. Try again.", retry_after_seconds=1)

    def _stale(self, key_id: str, problem: Exception) -> KeyRecord:
        known = self._known.get(key_id)
        if known is not None and self._clock() - known.read_seconds < self._limits.stale:
            return known.record
        logger.warning("a key could not be looked up", extra={"problem": repr(problem)})
        raise UplionError(
            Reason.UNAVAILABLE, "Keys cannot be checked at the moment. Try again shortly.", retry_after_seconds=1
        ) from problem

    def _keep(self, cached: CachedRecord) -> None:
        self._known[cached.record.id] = _Known(cached.record, cached.read_seconds)
        self._known.move_to_end(cached.record.id)
        while len(self._known) > self._limits.known:
            self._known.popitem(last=False)

    def _keep_unknown(self, key_id: str) -> None:
        self._known.pop(key_id, None)
        self._unknown[key_id] = self._clock() + self._limits.unknown_ttl
        while len(self._unknown) > self._limits.unknown:
            self._unknown.popitem(last=False)
