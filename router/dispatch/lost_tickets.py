"""Lost tickets: delivered to a worker that never offered to run them, since it was killed, or stopped.

The queue would deliver such a ticket again after its acknowledgement time only. The router, which hears no offer, asks
the queue how far it has delivered, and publishes the ticket anew while other workers wait for one. A ticket that was
not delivered keeps its place: waiting in a full queue is no loss. Until then nothing is asked or sent.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import nats.errors
import nats.js.errors

from common.lifecycle import not_cancelled
from messaging.bus import Bus

logger = logging.getLogger(__name__)

_EVERY_SECONDS = 0.2
_QUIET_SECONDS = 0.4  # without an offer, before the queue is asked; twice that, and the ticket is lost
_MOST_QUIET_SECONDS = 2.0  # of a ticket that was lost often: every worker may be slow, and another copy does not help
_OFTEN = 5
_ASK_SECONDS = 1.0


@dataclass(slots=True)
class Whereabouts:
    """Where the newest publication of a waiting ticket is. Times are the loop's."""

    model: str
    lane: str
    published_at: float
    sequence: int = 0  # in TASKS; 0: not acknowledged yet
    publications: int = 1
    delivered_at: float | None = None  # when the queue said that it is with a worker


class WaitingTicket(Protocol):
    """A ticket without an offer."""

    whereabouts: Whereabouts


TicketT = TypeVar("TicketT", bound=WaitingTicket)


class LostTickets(Generic[TicketT]):
    """Looks for them among the waiting tickets; `run` is its task."""

    def __init__(self, bus: Bus, waiting: Callable[[], Iterable[TicketT]], publish: Callable[[TicketT], None]) -> None:
        self._bus = bus
        self._waiting = waiting
        self._publish = publish  # publishes a ticket anew, and deletes its earlier publication

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        asked_at: dict[tuple[str, str], float] = {}
        while not_cancelled():
            await asyncio.sleep(_EVERY_SECONDS)
            now = loop.time()
            quiet: dict[tuple[str, str], list[TicketT]] = defaultdict(list)
            for ticket in self._waiting():
                where = ticket.whereabouts
                if where.sequence and now - where.published_at >= _QUIET_SECONDS:
                    quiet[where.model, where.lane].append(ticket)
            asked_at = {queue: at for queue, at in asked_at.items() if now - at < _QUIET_SECONDS}
            for queue, tickets in quiet.items():
                if queue not in asked_at and self._bus.connected:
                    asked_at[queue] = now
                    await self._look(queue, tickets)

    async def _look(self, queue: tuple[str, str], tickets: list[TicketT]) -> None:
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                progress = await self._bus.task_progress(*queue)
        except nats.js.errors.NotFoundError:  # no worker has asked for this model's tickets yet
            return
        except (nats.errors.Error, TimeoutError) as problem:
            logger.warning("the queue cannot be asked", extra={"problem": repr(problem)})
            return
        now = asyncio.get_running_loop().time()
        for ticket in tickets:
            where = ticket.whereabouts
            if not 0 < where.sequence <= progress.delivered_sequence:
                continue
            if where.delivered_at is None:
                where.delivered_at = now
            elif progress.takers and now - where.delivered_at >= _patience_seconds(where.publications):
                logger.warning("a ticket was lost with its worker", extra={"model": where.model})
                self._publish(ticket)


def _patience_seconds(publications: int) -> float:
    """A stopped worker's credit stands: some copies go to it too, so there is no reason to wait longer at first."""
    return _QUIET_SECONDS if publications <= _OFTEN else _MOST_QUIET_SECONDS
