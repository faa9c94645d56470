"""Since when Valkey holds what it holds: how a Valkey that was flushed, or came back empty, is noticed and told again.

A marker (names.SINCE_KEY) lies beside the counters and is lost with them; every account's counters name the marker they
belong to. Whoever misses it (a look twice a second, after every lost connection, and whenever an account's counters
name another) writes a new one and calls the other authz processes. Each then adds what it admitted itself and nobody
else knows, and asks the ledger which of that has ended meanwhile; in this order, for the reason that
billing/reservations/settlement.py gives. What is used comes from the ledger as it is asked for.

Until all had time for it (1.5 s) requests that have limits are judged by the local share. A new platform does not pay
that: an authz that starts, finds no marker, and finds that no other authz runs, has nobody to wait for. What is lost is
what authz processes admitted that ended together with Valkey, until their requests are settled.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Protocol

import nats.errors

from authz.limits.counter_writes import Change, CounterWrites
from authz.limits.in_flight import InFlight
from authz.limits.scripts import Commands
from common import names
from common.lifecycle import not_cancelled
from messaging.bus import Bus
from storage.valkey import ValkeyError

logger = logging.getLogger(__name__)
_WAIT_MS = 1500
_LOOK_SECONDS = 0.5
_ANYBODY_SECONDS = 1.0  # a server without listeners says so at once
_IDS_PER_QUERY = 5000
_LEDGER_TRIES = 3


class Ended(Protocol):
    """The ledger, as far as it says which requests have ended."""

    async def ended(self, request_ids: Sequence[str]) -> dict[str, int]: ...


class StoreEpoch:
    """The marker this process goes by, and whether Valkey can be trusted; `run` is its one task."""

    def __init__(
        self,
        valkey: Commands,
        bus: Bus | None,
        ledger: Ended,
        in_flight: InFlight,
        counter_writes: CounterWrites,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._valkey = valkey
        self._bus = bus
        self._ledger = ledger
        self._in_flight = in_flight
        self._counter_writes = counter_writes
        self._clock = clock
        self._looking = asyncio.Lock()
        self._wake = asyncio.Event()
        self._fresh = False  # Valkey is another, and was not told everything yet
        self._behind = False  # it was away, and was not told what was admitted meanwhile
        self._opens_at = 0.0  # when the other processes had their time, too
        self.value = ""

    @property
    def trusted(self) -> bool:
        """Whether Valkey knows what was admitted."""
        return not (self._fresh or self._behind) and bool(self.value) and self._clock() >= self._opens_at

    async def look(self) -> None:
        """Reads the marker, and writes it where there is none; raises ValkeyError."""
        async with self._looking:
            found = await self._valkey.call("GET", names.SINCE_KEY)
            if found is None:
                alone = not self.value and await self._alone()
                seconds, microseconds = await self._valkey.call("TIME")
                now = int(seconds) * 1000 + int(microseconds) // 1000
                marker = f"{now}-{0 if alone else _WAIT_MS}-{token_hex(4)}"
                await self._valkey.call("SET", names.SINCE_KEY, marker, "NX")
                found = await self._valkey.call("GET", names.SINCE_KEY)
                if found is None:
                    raise ValkeyError("the marker does not stay")
            value = found.decode()
            if value != self.value:
                await self._changed(value)

    async def _changed(self, value: str) -> None:
        created, wait, _ = value.split("-")
        seconds, microseconds = await self._valkey.call("TIME")
        age = int(seconds) * 1000 + int(microseconds) // 1000 - int(created)
        self._opens_at = self._clock() + max(0, int(wait) - age) / 1000
        if self.value:
            logger.warning("Valkey lost what it held: limits have their local share for a moment")
            self._fresh = True
            self._wake.set()
            if self._bus is not None:
                with suppress(nats.errors.Error):
                    await self._bus.nc.publish(names.SUBJECT_SINCE)
        self.value = value

    async def run(self, ready: asyncio.Event) -> None:
        """Looks, and tells a fresh Valkey what it lacks, for ever. `ready` once it has looked, or could not."""
        with suppress(ValkeyError):
            await self.look()  # before anybody can hear of us: see _alone
        if self._bus is not None:
            subscription = await self._bus.nc.subscribe(names.SUBJECT_SINCE, cb=self._on_message)
            await self._bus.nc.flush(timeout=5)
        ready.set()
        try:
            while not_cancelled():
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._wake.wait()
                self._wake.clear()
                try:
                    await self.look()
                    if self._fresh:
                        await self._tell_everything()
                    elif self._behind or self._in_flight.unknown:
                        await self._tell_new()
                except ValkeyError as problem:
                    logger.debug("Valkey cannot be told", extra={"problem": repr(problem)})
        finally:
            if self._bus is not None:
                with suppress(nats.errors.Error):
                    await subscription.unsubscribe()

    def wake(self) -> None:
        """Valkey is back: it may lack what was admitted meanwhile."""
        self._behind = self._in_flight.unknown
        self._wake.set()

    async def _on_message(self, _: object) -> None:
        self._wake.set()

    async def _tell_everything(self) -> None:
        value = self.value
        self._in_flight.take_new()
        changes = self._in_flight.changes(int(time.time() * 1000))
        await self._counter_writes.send(value, changes)
        await self._forget_ended(changes)
        self._fresh = value != self.value
        self._behind = self._in_flight.unknown  # admitted by the local share meanwhile

    async def _tell_new(self) -> None:
        changes = self._in_flight.take_new()
        try:
            await self._counter_writes.send(self.value, changes)
        except ValkeyError:
            self._in_flight.put_back(changes)
            raise
        await self._forget_ended(changes)
        self._behind = self._in_flight.unknown

    async def _forget_ended(self, told: dict[str, list[Change]]) -> None:
        """Gives back what was told and has ended: its settlement may have come before."""
        reservations = [change[1] for changes in told.values() for change in changes if change[0] == "hold"]
        for start in range(0, len(reservations), _IDS_PER_QUERY):
            owners = self._in_flight.owners(reservations[start : start + _IDS_PER_QUERY])
            tokens = await self._ended([request_id for request_id, _ in owners.values()])
            gone: dict[str, list[Change]] = {}
            for reservation in tokens.keys() & owners.keys():
                gone.setdefault(owners[reservation][1], []).append(("give back", reservation, tokens[reservation]))
            await self._counter_writes.send("", gone)
            self._in_flight.ended(tokens)

    async def _ended(self, request_ids: list[str]) -> dict[str, int]:
        for _ in range(_LEDGER_TRIES):
            try:
                return await self._ledger.ended(request_ids)
            except Exception as problem:  # asyncpg's many: then billing's sweep for orphans gives them back
                logger.warning("the ledger does not say what has ended", extra={"problem": repr(problem)})
        return {}

    async def _alone(self) -> bool:
        """Whether no other authz runs: none listens. (Each listens once it has found or made the marker.)"""
        if self._bus is None:
            return True
        try:
            await self._bus.nc.request(names.SUBJECT_SINCE, timeout=_ANYBODY_SECONDS)
        except nats.errors.NoRespondersError:
            return True
        except (nats.errors.Error, TimeoutError):
            pass
        return False
