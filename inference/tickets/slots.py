"""The slots of a worker: which tickets it holds, in which state, and how each is settled."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from hmac import compare_digest
from typing import Protocol

from uplion.billing.v1.usage_event_pb2 import UsageEvent
from uplion.dispatch.v1.ticket_pb2 import Ticket

from common import names
from inference.tickets.held import HeldTicket, TicketState

logger = logging.getLogger(__name__)

_REMEMBERED_REQUESTS = 10_000  # whose newest attempt is known; duplicates come within the queue's ack wait


class UsageOutbox(Protocol):
    """Stores usage events until the ledger's stream has them. (messaging.outbox.Outbox)"""

    blocked: bool  # events can neither be published nor stored: no work may begin

    def put(self, event: UsageEvent, on_safe: Callable[[], None] | None = None, *, traceparent: str = "") -> None:
        """Takes an event; `on_safe` is called once the stream or the disk has it."""


class SlotManager:
    """Holds tickets: offered and running ones occupy a slot, those that end do not, until they are acknowledged.

    A ticket is settled in two steps: its usage event is stored by the outbox, and then its delivery is acknowledged.
    Before that, what the client was given may have to become known.
    The attempt number is the fence: an attempt that is not newer than one that ran here is not run.
    """

    def __init__(self, slots: int, outbox: UsageOutbox) -> None:
        self._slots = slots
        self._outbox = outbox
        self._held: dict[str, HeldTicket] = {}
        self._settling = 0
        self._newest_attempts: OrderedDict[str, int] = OrderedDict()
        self._idle, self._settled = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._settled.set()
        self.freed = asyncio.Event()  # set when a slot may have become free; the one reader clears it
        self.draining = False

    @property
    def blocked(self) -> bool:
        """No slot is given out, since usage events cannot be stored."""
        return self._outbox.blocked

    @property
    def busy(self) -> int:
        """Tickets offered or running."""
        return len(self._held) - self._settling

    @property
    def free(self) -> int:
        """Slots that may be given out now; none while draining or blocked.

        Ending tickets beyond twice the number of slots occupy slots too, which bounds what runs unrecorded.
        """
        if self.draining or self.blocked:
            return 0
        return max(0, self._slots - self.busy - max(0, self._settling - 2 * self._slots))

    def held(self) -> Iterator[HeldTicket]:
        """The tickets of this moment; they may be settled meanwhile."""
        return iter(list(self._held.values()))

    def holds(self, ticket: Ticket) -> bool:
        """Whether this attempt is held already: a queue may deliver it twice."""
        return names.attempt_id(ticket.request_id, ticket.attempt) in self._held

    def superseded(self, ticket: Ticket) -> bool:
        """Whether this attempt, or a newer one of the same request, has run here."""
        return self._newest_attempts.get(ticket.request_id, 0) >= ticket.attempt

    def hold(self, held: HeldTicket) -> None:
        """Gives it a slot."""
        self._held[held.id] = held
        self._idle.clear()

    def claim(self, shown: Ticket) -> HeldTicket | None:
        """The ticket whose run begins now; None when it was not offered here, was given back, or has another proof."""
        request_id, attempt = shown.request_id, shown.attempt
        held = self._held.get(names.attempt_id(request_id, attempt))
        if held is None or held.state is not TicketState.OFFERED:
            return None
        if not compare_digest(held.ticket.proof, shown.proof):
            return None
        held.enter(TicketState.RUNNING)
        self._newest_attempts[request_id] = max(attempt, self._newest_attempts.get(request_id, 0))
        self._newest_attempts.move_to_end(request_id)
        if len(self._newest_attempts) > _REMEMBERED_REQUESTS:
            self._newest_attempts.popitem(last=False)
        return held

    def find(self, attempt_id: str) -> HeldTicket | None:
        """The ticket of an attempt, while it is held."""
        return self._held.get(attempt_id)

    def deliver(self, held: HeldTicket, measured: UsageEvent) -> None:
        """Ends a run and frees its slot; the ticket is settled once it is known what the client was given."""
        held.enter(TicketState.DELIVERING)
        held.measured = measured
        self._ends()
        self.freed.set()

    def settle(self, held: HeldTicket, event: UsageEvent | None) -> None:
        """Ends a ticket and frees its slot; without an event it is only acknowledged. Idempotent."""
        if held.state in (TicketState.SETTLING, TicketState.RELEASED):
            return
        if held.state is not TicketState.DELIVERING:
            self._ends()
        held.enter(TicketState.SETTLING)
        if event is None:
            self._acknowledge(held)
        else:
            self._outbox.put(event, partial(self._acknowledge, held), traceparent=held.traceparent)

    async def give_back(self, held: HeldTicket, delay_seconds: float) -> None:
        """Frees the slot of an offered ticket and lets its queue deliver it again. Raises SourceUnavailableError."""
        held.enter(TicketState.RELEASED)
        del self._held[held.id]
        self._check_idle()
        await held.delivery.give_back(delay_seconds)

    async def idle(self, grace_seconds: float) -> None:
        """Waits until nothing is offered or running; logs what is cut off when that takes longer than the grace."""
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("requests outlive the drain and are cut off", extra={"requests": self.busy})

    async def settled(self, grace_seconds: float) -> None:
        """Waits until every ended ticket is settled; logs how many are not when that takes longer than the grace."""
        try:
            async with asyncio.timeout(grace_seconds):
                await self._settled.wait()
        except TimeoutError:
            logger.warning("tickets could not be settled", extra={"unsettled": self._settling})

    def _ends(self) -> None:
        self._settling += 1
        self._settled.clear()
        self._check_idle()

    def _check_idle(self) -> None:
        if self.busy == 0:
            self._idle.set()

    def _acknowledge(self, held: HeldTicket) -> None:
        """Its event is stored. The slot was free before; new credit is asked for now, in one write with this."""
        held.delivery.acknowledge(partial(self._release, held))
        self.freed.set()

    def _release(self, held: HeldTicket) -> None:
        if self._settling > 2 * self._slots:  # it occupied a slot
            self.freed.set()
        held.enter(TicketState.RELEASED)
        del self._held[held.id]
        self._settling -= 1
        if not self._settling:
            self._settled.set()
