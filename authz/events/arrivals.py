"""Gives back what was reserved for requests that never reached a router: Envoy refused them after the check, or died,
or their client left, or the check's answer came too late.

Routers announce on NATS which admitted requests they have (router/surfaces/arrivals.py), so a good request costs no
call for this. A reservation that nobody announces is given back after 3 to 4 s. Waiting is right where an announcement
may be missing: while no router is heard, until it has been silent for long, and for all that was admitted before the
connection to NATS was lost. Those reservations are left to settlement and to billing's sweep for orphans.
"""

import asyncio
import time
from collections.abc import Callable

from nats.aio.msg import Msg

from authz.limits.counter_writes import CounterWrites
from authz.limits.in_flight import InFlight
from authz.metrics import AUTHZ_UNDELIVERED
from common import names
from common.lifecycle import not_cancelled
from messaging.bus import Bus

_GENERATION_SECONDS = 1.0
_GENERATIONS = 4
_SILENT_SECONDS = 15.0  # a router that was heard and is silent for so long is dead, not busy
_MOST = 200_000  # reservations; beyond it the oldest are left to settlement


class Arrivals:
    """The reservations that wait for a router's announcement; `run` is the one task that gives them back."""

    def __init__(
        self, bus: Bus, counter_writes: CounterWrites, in_flight: InFlight, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bus = bus
        self._counter_writes = counter_writes
        self._in_flight = in_flight
        self._clock = clock
        # Reservation -> its account; the newest first. A process that stood still moves all of them on by one only.
        self._expected: list[dict[str, str]] = [{} for _ in range(_GENERATIONS)]
        self._heard_at: float | None = None
        self._reconnects = bus.reconnects

    def expect(self, account: str, reservation: str) -> None:
        """The request was admitted."""
        if reservation:
            self._expected[0][reservation] = account

    async def run(self, ready: asyncio.Event) -> None:
        """Listens, and gives back, until cancelled."""
        await self._bus.subscribe(names.SUBJECT_ARRIVED, cb=self._on_message)
        ready.set()
        turned_at = self._clock()
        while not_cancelled():
            await asyncio.sleep(_GENERATION_SECONDS)
            self.turn(turned_at)
            turned_at = self._clock()

    def arrived(self, reservations: list[str]) -> None:
        """A router has these; an empty list says that it lives."""
        self._heard_at = self._clock()
        newest, *older = self._expected
        for each in reservations:
            if newest.pop(each, None) is None:
                for generation in older:
                    generation.pop(each, None)

    def turn(self, since: float) -> None:
        """Gives back the oldest generation, unless an announcement may have been missed since then."""
        if self._bus.reconnects != self._reconnects or not self._bus.connected:
            self._reconnects = self._bus.reconnects
            self._expected = [{} for _ in range(_GENERATIONS)]
            return
        silent = self._heard_at is None or since > self._heard_at > self._clock() - _SILENT_SECONDS
        if silent or self._in_flight.has_unwritten:
            if sum(map(len, self._expected)) > _MOST:
                self._age()
            return
        oldest = self._expected[-1]
        for reservation, account in oldest.items():
            self._counter_writes.give_back(account, reservation, tokens=0)
        self._in_flight.ended(oldest)
        AUTHZ_UNDELIVERED.inc(len(oldest))
        self._age()

    def _age(self) -> None:
        self._expected = [{}, *self._expected[:-1]]

    async def _on_message(self, message: Msg) -> None:
        self.arrived(message.data.decode("ascii", "replace").split())
