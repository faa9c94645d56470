"""Recovery from data loss in Valkey: detects that it was flushed or came back empty, and writes the reservations again.

A marker (names.STORE_EPOCH_KEY) names the epoch of Valkey's data, lies beside the counters and is lost with them, and
each account's counters carry the epoch they belong to. Whoever finds it missing (a check twice a second, after every
lost connection, and whenever an account's counters carry another) writes a new one and notifies the other authz
processes. Each then adds what it admitted itself, and asks the ledger which of that has ended meanwhile; in this order,
for the reason given in billing/reservations/settlement.py. Used totals come from the ledger as they are needed.

Until every process had time for it (1.5 s) requests that have limits are decided by the local fallback. A new platform
skips that: an authz that starts and finds no marker and no other authz waits for none. What stays lost is what authz
processes admitted that ended together with Valkey, until their requests are settled.
"""

import asyncio
import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from secrets import token_hex
from typing import Protocol

import nats.errors

from authz.errors import DatabaseError
from authz.limits.counter_writes import Change, CounterWrites
from authz.limits.in_flight import InFlight
from common import names
from common.lifecycle import not_cancelled
from messaging.bus import Bus
from storage.valkey import Commands, ValkeyError

logger = logging.getLogger(__name__)
_RECOVERY_MS = 1500
_CHECK_SECONDS = 0.5
_PEERS_SECONDS = 1.0  # NATS answers at once where there are no listeners
_IDS_PER_QUERY = 5000
_LEDGER_TRIES = 3
_CATCH_UP_ROUNDS = 5  # each lasts a call, in which a few more may be admitted
_MARKER = re.compile(rb"[0-9]{1,15}-[0-9]{1,6}-[0-9a-f]{8}").fullmatch


class Ended(Protocol):
    """Which requests have ended, by the ledger; raises DatabaseError."""

    async def ended(self, request_ids: Sequence[str]) -> dict[str, int]: ...


class StoreEpoch:
    """The epoch that this process uses, and whether Valkey holds all reservations of it; `run` is its one task."""

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
        self._refreshing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._lost = False  # Valkey lost its data, and this process has not written all of its part again
        self._writing = asyncio.Lock()  # what was admitted without it is on its way
        self._written: dict[str, list[Change]] = defaultdict(list)  # of that, what may have ended before, by account
        self._opens_at = 0.0  # when the other processes have had their time, too
        self.value = ""
        self.ahead_seconds = 0.0  # of Valkey's clock to this process' one, when it was last read

    @property
    def complete(self) -> bool:
        """Whether Valkey holds everything that was admitted, once `catch_up` has returned."""
        return not self._lost and bool(self.value) and self._clock() >= self._opens_at

    @property
    def behind(self) -> bool:
        """Whether this process has admitted something that Valkey does not hold."""
        return self._in_flight.has_unwritten or self._writing.locked()

    async def catch_up(self) -> None:
        """Writes what was admitted without Valkey, for a check that is to count it; raises ValkeyError."""
        for _ in range(_CATCH_UP_ROUNDS):
            if not self.behind:
                return
            await self._write_unwritten()

    async def refresh(self) -> None:
        """Reads the marker, and writes it where there is none; raises ValkeyError."""
        async with self._refreshing:
            found = await self._valkey.call("GET", names.STORE_EPOCH_KEY)
            if found is not None and not _MARKER(found):
                logger.error("the marker in Valkey is none of ours: a new one is written")
                await self._valkey.call("DEL", names.STORE_EPOCH_KEY)
                found = None
            if found is None:
                alone = not self.value and await self._is_alone()
                marker = f"{await self._now_ms()}-{0 if alone else _RECOVERY_MS}-{token_hex(4)}"
                await self._valkey.call("SET", names.STORE_EPOCH_KEY, marker, "NX")
                found = await self._valkey.call("GET", names.STORE_EPOCH_KEY)
                if found is None or not _MARKER(found):
                    raise ValkeyError("the marker does not stay")
            value = found.decode()
            if value != self.value:
                await self._change(value)

    async def _change(self, value: str) -> None:
        created, wait, _ = value.split("-")
        age = await self._now_ms() - int(created)
        self._opens_at = self._clock() + max(0, int(wait) - age) / 1000
        if self.value:
            logger.warning("Valkey lost its data: limits are decided by the local fallback for a moment")
            self._lost = True
            self._wake.set()
            if self._bus is not None:
                with suppress(nats.errors.Error):
                    await self._bus.publish_core(names.SUBJECT_STORE_EPOCH)
        self.value = value

    async def _now_ms(self) -> int:
        """Valkey's clock, by which reservations end and minutes are counted."""
        seconds, microseconds = await self._valkey.call("TIME")
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        self.ahead_seconds = now_ms / 1000 - time.time()
        return now_ms

    async def run(self, ready: asyncio.Event) -> None:
        """Checks the epoch and writes what Valkey lacks, until cancelled. `ready` after the first try."""
        with suppress(ValkeyError):
            await self.refresh()  # before the subscription below: see _is_alone
        async with AsyncExitStack() as until_cancelled:
            if self._bus is not None:
                await until_cancelled.enter_async_context(
                    self._bus.subscribed(names.SUBJECT_STORE_EPOCH, cb=self._on_message)
                )
            ready.set()
            while not_cancelled():
                with suppress(TimeoutError):
                    async with asyncio.timeout(_CHECK_SECONDS):
                        await self._wake.wait()
                self._wake.clear()
                try:
                    await self.refresh()
                    if self._lost:
                        await self._write_all()
                    elif self._in_flight.has_unwritten:
                        await self._write_unwritten()
                    if self._written:
                        await self._give_back_written()
                except ValkeyError as problem:
                    logger.debug("reservations cannot be written to Valkey", extra={"problem": repr(problem)})

    def wake(self) -> None:
        """Valkey answers again: it may lack what was admitted meanwhile."""
        self._wake.set()

    async def _on_message(self, _: object) -> None:
        self._wake.set()

    async def _write_all(self) -> None:
        async with self._writing:
            value, now_ms = self.value, await self._now_ms()
            self._in_flight.take_unwritten()
            changes = self._in_flight.changes(now_ms)
            await self._counter_writes.send(value, changes)
        await self._give_back_ended(changes)
        self._lost = value != self.value

    async def _write_unwritten(self) -> None:
        async with self._writing:
            changes = self._in_flight.take_unwritten()
            try:
                await self._counter_writes.send(self.value, changes)
            except BaseException:  # also where the check that waits for this is cancelled
                self._in_flight.put_back(changes)
                raise
            for account, each in changes.items():
                self._written[account] += each

    async def _give_back_written(self) -> None:
        written, self._written = self._written, defaultdict(list)
        try:
            await self._give_back_ended(written)
        except ValkeyError:
            for account, each in written.items():
                self._written[account] += each
            raise

    async def _give_back_ended(self, written: dict[str, list[Change]]) -> None:
        """Gives back what was written and has ended: its settlement may have come before."""
        reservations = [change[1] for changes in written.values() for change in changes if change[0] == "hold"]
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
            except DatabaseError as problem:  # billing's sweep for orphans gives them back later
                logger.warning("ended requests could not be read", extra={"problem": repr(problem)})
        return {}

    async def _is_alone(self) -> bool:
        """Whether no other authz runs: none subscribes. (Each does once it has found or written the marker.)"""
        if self._bus is None:
            return True
        try:
            await self._bus.request(names.SUBJECT_STORE_EPOCH, seconds=_PEERS_SECONDS)
        except nats.errors.NoRespondersError:
            return True
        except (nats.errors.Error, TimeoutError):
            pass
        return False
