"""Orphaned reservations: released when no usage event will settle them, because a router, the edge or a client died.

A reservation is an orphan when its request's deadline is long past and every event that the usage stream held after
that time has been settled. (An event that is still in a spool on some disk is settled when it arrives, and then finds
no reservation to release.)
"""

import logging
from dataclasses import dataclass

from billing.metrics import BILLING_ORPHANS
from billing.reservations.settlement import Settlement
from common import names
from messaging.bus import Bus

logger = logging.getLogger(__name__)
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Mark:
    """A position in the usage stream, and the deadlines that, with grace, were past when it was the last one."""

    sequence: int
    ended_ms: int


class OrphanSweep:
    """Finds and releases orphans, step by step."""

    def __init__(self, bus: Bus, settlement: Settlement, grace_seconds: float) -> None:
        self._bus = bus
        self._settlement = settlement
        self._grace_ms = int(grace_seconds * 1000)
        self._mark: _Mark | None = None

    async def step(self) -> None:
        """Releases the orphans of the last mark once billing has settled everything up to it, and sets the next mark.

        Raises the errors of NATS and Valkey.
        """
        mark, self._mark = self._mark, None
        if mark is not None:
            if not await self._passed(mark.sequence):
                self._mark = mark
                return
            await self._release(mark.ended_ms)
        now_ms = await self._settlement.now_ms()
        state = (await self._bus.js.stream_info(names.STREAM_USAGE)).state
        self._mark = _Mark(state.last_seq, now_ms - self._grace_ms)

    async def _passed(self, sequence: int) -> bool:
        """Whether all events up to there are settled: billing acknowledges only after that."""
        info = await self._bus.js.consumer_info(names.STREAM_USAGE, names.CONSUMER_BILLING)
        if info.num_ack_pending == 0:  # not num_pending: a message is acknowledged before it is counted there
            return info.delivered is not None and info.delivered.stream_seq >= sequence
        return info.ack_floor is not None and info.ack_floor.stream_seq >= sequence

    async def _release(self, ended_ms: int) -> None:
        async for account, orphans in self._settlement.overdue(ended_ms):
            released = await self._settlement.release(account, orphans)
            BILLING_ORPHANS.inc(released)
            logger.warning(
                "no usage event came for these reservations: they are released",
                extra={"account": account, "reservations": released, "some": orphans[:_SHOWN]},
            )
