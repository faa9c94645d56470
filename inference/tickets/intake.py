"""The intake of tickets: pulls them while slots are free, offers each to its router, and watches their time."""

import asyncio
import logging
import time
from contextlib import suppress

from uplion.billing.v1.usage_event_pb2 import AttemptStatus

from common.boundary import Boundary
from common.errors import Reason
from common.lifecycle import not_cancelled, run_forever
from common.metrics import MESSAGES_DROPPED
from inference import metrics
from inference.tickets.held import HeldTicket, MalformedTicketError, TicketState, read_ticket
from inference.tickets.offers import Offers, Refusal
from inference.tickets.receipts import Receipts
from inference.tickets.slots import SlotManager
from inference.tickets.source import Delivery, SourceUnavailableError, TicketSource
from inference.usage_events import UsageRecorder

logger = logging.getLogger(__name__)
_boundary = Boundary("a ticket could not be renewed", logger, MESSAGES_DROPPED.labels("tickets held"))

OFFER_SECONDS = 10.0  # how long a router may take to answer an offer: a busy one is not dead, and a dead one is told
RENEW_SECONDS = 10.0  # well under half of the queue's ack wait
_MAX_DELIVERIES = 5  # of a ticket whose router never answers
_GIVE_BACK_SECONDS = 1.0  # before a ticket that this worker cannot run is delivered again
_NEXT_SECONDS = 1.0  # the credit is set anew at least this often
_SWEEP_SECONDS = 0.25


class TicketIntake:
    """Tasks: `run` until the drain begins; `sweep` until every ticket is settled."""

    def __init__(
        self, source: TicketSource, slots: SlotManager, offers: Offers, usage: UsageRecorder, receipts: Receipts
    ) -> None:
        self._source = source
        self._slots = slots
        self._offers = offers
        self._receipts = receipts
        self._usage = usage

    async def run(self) -> None:
        """Takes tickets as long as slots are free; ends only when cancelled."""
        await run_forever({"ticket pull": self._pull, "ticket credit": self._renew_credit})

    async def finish(self) -> None:
        """Takes no more tickets (`run` was cancelled): those that have arrived go back to their queue."""
        for delivery in await self._source.finish():
            await self._take(delivery)  # while draining no slot is free

    async def sweep(self) -> None:
        """Ends offers and runs whose time is over, and keeps queues from delivering again; for ever."""
        while not_cancelled():
            await asyncio.sleep(_SWEEP_SECONDS)
            for held in self._slots.held():
                with _boundary:
                    await self._check_time(held)

    async def _pull(self) -> None:
        while not_cancelled():
            await self._source.want(self._slots.free)
            delivery = await self._source.next(_NEXT_SECONDS)
            if delivery is not None:
                await self._take(delivery)

    async def _renew_credit(self) -> None:
        while not_cancelled():
            await self._slots.freed.wait()
            self._slots.freed.clear()
            await self._source.want(self._slots.free)

    async def _take(self, delivery: Delivery) -> None:
        """Decides about a delivery; one that cannot be answered now is delivered again by its queue."""
        try:
            await self._decide(delivery)
        except SourceUnavailableError as problem:
            logger.warning("ticket not answered", extra={"problem": str(problem)})
        except Exception as problem:  # the message-consumer boundary: one ticket must not end the intake
            logger.exception("ticket cannot be handled")
            with suppress(SourceUnavailableError):
                await delivery.dead_letter(f"cannot be handled: {type(problem).__name__}")

    async def _decide(self, delivery: Delivery) -> None:
        """It is offered, settled without a run, given back, or a dead letter."""
        try:
            ticket = read_ticket(delivery.payload)
        except MalformedTicketError as problem:
            logger.error("ticket cannot be read", extra={"problem": str(problem)})
            await delivery.dead_letter(str(problem))
            return
        if self._slots.holds(ticket):  # delivered twice: settling the one we hold settles both
            return
        if self._slots.free < 1:
            await delivery.give_back(_GIVE_BACK_SECONDS if self._slots.blocked else 0.0)
            return
        held = HeldTicket(ticket, delivery)
        self._slots.hold(held)
        if self._slots.superseded(ticket):
            self._slots.settle(held, None)
        else:  # a late one too: only its router knows what the time is there, and refuses it
            self._offers.send(held, self._refused)

    def _refused(self, held: HeldTicket, refusal: Refusal) -> None:
        if refusal is Refusal.REFUSED:
            metrics.OFFERS_REFUSED.inc()
            self._slots.settle(held, None)
        else:
            cancelled = AttemptStatus.ATTEMPT_STATUS_CANCELLED
            self._slots.settle(held, self._usage.never_ran(held.ticket, cancelled, Reason.CANCELLED))

    async def _check_time(self, held: HeldTicket) -> None:
        now_seconds = time.monotonic()
        if held.state is TicketState.OFFERED and now_seconds - held.since_seconds > OFFER_SECONDS:
            await self._expire_offer(held)
            return
        if held.state is TicketState.DELIVERING:
            self._receipts.check(held)
        if held.run is not None and held.deadline_seconds <= now_seconds:
            held.run.expire()
        if held.state is not TicketState.RELEASED and now_seconds - held.renewed_seconds > RENEW_SECONDS:
            held.renewed_seconds = now_seconds
            await held.delivery.in_progress()

    async def _expire_offer(self, held: HeldTicket) -> None:
        """The router neither opened the run nor refused it: another worker may try, a few times."""
        if held.delivery.delivery_count >= _MAX_DELIVERIES:
            failed = AttemptStatus.ATTEMPT_STATUS_FAILED
            self._slots.settle(held, self._usage.never_ran(held.ticket, failed, Reason.UNAVAILABLE))
        else:
            await self._slots.give_back(held, _GIVE_BACK_SECONDS)
