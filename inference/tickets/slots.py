"""The desk: tickets this worker holds, from the pull until they are settled. It knows the slots."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial

import nats.errors
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from uplion.billing.v1.usage_event_pb2 import AttemptStatus, UsageEvent
from uplion.dispatch.v1.ticket_pb2 import Offer, Ticket

from common import names, telemetry
from common.errors import Reason
from inference import metrics
from inference.tickets.settlement import Settlement, Settler
from inference.usage_events import UsageRecorder
from messaging import nats_protocol
from messaging.inbox import Inbox
from messaging.pull import Message

logger = logging.getLogger(__name__)

OFFER_SECONDS = 2.0  # how long a router may think about an offer
RENEW_SECONDS = 10.0  # well under half of the consumer's ack wait
_MAX_OFFERS = 5  # a ticket whose router never answers is given up after so many deliveries
_REMEMBERED = 10_000  # requests whose attempt numbers are known; duplicates come within the ack wait
_NAK_LATER = b'-NAK {"delay": 1000000000}'
_NAK_NOW = b"-NAK"
_IN_PROGRESS = b"+WPI"


class Stage(Enum):
    """Where a held ticket is."""

    OFFERED = "offered"
    RUNNING = "running"
    SETTLING = "settling"


@dataclass(slots=True, eq=False)
class HeldTicket:
    """A ticket in this worker's hands."""

    id: str  # the attempt's
    ticket: Ticket
    message: Message
    traceparent: str
    deadline_seconds: float  # unix time
    stage: Stage
    since_seconds: float  # monotonic: when the stage began
    renewed_seconds: float
    offer_subject: str = ""
    on_deadline: Callable[[], None] | None = None  # set by who runs it


class SlotManager:
    """Takes tickets, offers them to their routers, and hands them out to the runs the routers open.

    The attempt number is the fence: a run that was not offered here, or is older than one seen here, is refused.
    """

    def __init__(
        self,
        client: Client,
        inbox: Inbox,
        usage: UsageRecorder,
        blocked: Callable[[], bool],
        *,
        worker_id: str,
        slots: int,
    ) -> None:
        self._client = client
        self.blocked = blocked  # whether usage cannot be stored
        self._inbox = inbox
        self._usage = usage
        self._worker_id = worker_id
        self._slots = slots
        self._held: dict[str, HeldTicket] = {}
        self._settling = 0
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._address = ""
        self._meter: Settler | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False

    def open(self, address: str, meter: Settler) -> None:
        """Tickets may come: `address` is where their runs are opened, `meter` settles them."""
        self._address, self._meter = address, meter

    @property
    def free(self) -> int:
        """Slots without a ticket; none while usage cannot be stored.

        Unsettled tickets beyond as many again take slots too: no silent free inference.
        """
        if self.draining or self.blocked():
            return 0
        return max(0, self._slots - self.busy - max(0, self._settling - self._slots))

    @property
    def busy(self) -> int:
        """Tickets offered or running."""
        return len(self._held) - self._settling

    async def take(self, message: Message) -> None:
        """A ticket has come: refuse it, or offer to run it."""
        try:
            ticket = Ticket.FromString(message.data)
            if not ticket.request_id or not ticket.attempt or not ticket.reply_subject:
                raise DecodeError("request_id, attempt and reply_subject must be set")
        except DecodeError as problem:
            await self._bury(message, str(problem))
            return
        now_seconds = time.monotonic()
        held = HeldTicket(
            id=names.attempt_id(ticket.request_id, ticket.attempt),
            ticket=ticket,
            message=message,
            traceparent=telemetry.incoming(message.headers),
            deadline_seconds=ticket.deadline.seconds + ticket.deadline.nanos / 1e9,
            stage=Stage.OFFERED,
            since_seconds=now_seconds,
            renewed_seconds=now_seconds,
        )
        if held.id in self._held:  # came twice while it is here: the one we hold settles both
            return
        if self.free < 1:
            await self._client.publish(message.reply, _NAK_LATER if self.blocked() else _NAK_NOW)
            return
        self._held[held.id] = held
        self._empty.clear()
        if self._newest.get(ticket.request_id, 0) >= ticket.attempt:
            self.settle(held, None)
        elif held.deadline_seconds <= time.time() and message.first_delivery:
            self.settle(
                held,
                self._usage.never_ran(held.ticket, AttemptStatus.ATTEMPT_STATUS_TIMED_OUT, Reason.DEADLINE_EXCEEDED),
            )
        else:  # one that was delivered before may have run: its router knows, and refuses it
            self._offer(held)

    def claim(self, request_id: str, attempt: int) -> HeldTicket | None:
        """The held ticket whose run begins now; None when it was not offered, or was taken back."""
        held = self._held.get(names.attempt_id(request_id, attempt))
        if held is None or held.stage is not Stage.OFFERED:
            return None
        self._inbox.forget(held.offer_subject)
        held.stage, held.since_seconds = Stage.RUNNING, time.monotonic()
        self._newest[request_id] = max(attempt, self._newest.get(request_id, 0))
        self._newest.move_to_end(request_id)
        if len(self._newest) > _REMEMBERED:
            self._newest.popitem(last=False)
        return held

    def settle(self, held: HeldTicket, event: UsageEvent | None) -> None:
        """The ticket is done: its event goes out, then its acknowledgement. Frees the slot."""
        assert self._meter is not None, "the desk is not open"
        if held.stage is Stage.SETTLING:
            return
        held.stage = Stage.SETTLING
        held.on_deadline = None
        self._settling += 1
        self._meter.put(Settlement(held.message.reply, partial(self._settled, held), event, held.traceparent))
        self._check_empty()

    async def sweep(self) -> None:
        """Takes back offers nobody took, ends runs whose time is over, and keeps the broker from redelivering."""
        if self._meter is not None:
            self._meter.retry()
        now_seconds, unix_seconds = time.monotonic(), time.time()
        for held in list(self._held.values()):
            if held.stage is Stage.OFFERED and now_seconds - held.since_seconds > OFFER_SECONDS:
                await self._take_back(held)
                continue
            if held.on_deadline is not None and held.deadline_seconds <= unix_seconds:
                held.on_deadline()
            if now_seconds - held.renewed_seconds > RENEW_SECONDS:
                held.renewed_seconds = now_seconds
                await self._client.publish(held.message.reply, _IN_PROGRESS)

    async def empty(self, grace_seconds: float) -> None:
        """Waits until nothing is offered or running; says so if that takes longer than it may."""
        try:
            async with asyncio.timeout(grace_seconds):
                await self._empty.wait()
        except TimeoutError:
            logger.warning("requests outlive the drain and are cut off", extra={"requests": self.busy})

    def _check_empty(self) -> None:
        if self.busy == 0:
            self._empty.set()

    def _offer(self, held: HeldTicket) -> None:
        held.offer_subject = self._inbox.expect(partial(self._answered, held))
        offer = Offer(
            request_id=held.ticket.request_id,
            attempt=held.ticket.attempt,
            worker_id=self._worker_id,
            address=self._address,
        )
        headers = {telemetry.TRACEPARENT: held.traceparent} if held.traceparent else None
        nats_protocol.send(
            self._client, held.ticket.reply_subject, offer.SerializeToString(), held.offer_subject, headers=headers
        )

    def _answered(self, held: HeldTicket, answer: Message) -> None:
        """A message on the offer's reply subject: nobody listens any more, or the router says no."""
        if held.stage is not Stage.OFFERED:
            return
        if answer.no_responders:
            event = self._usage.never_ran(held.ticket, AttemptStatus.ATTEMPT_STATUS_CANCELLED, Reason.CANCELLED)
            self.settle(held, event)
        else:
            metrics.OFFERS_REFUSED.inc()
            self.settle(held, None)

    async def _take_back(self, held: HeldTicket) -> None:
        """The router neither opened the run nor refused: let another worker try, a few times."""
        self._inbox.forget(held.offer_subject)
        if held.message.metadata.num_delivered >= _MAX_OFFERS:
            event = self._usage.never_ran(held.ticket, AttemptStatus.ATTEMPT_STATUS_FAILED, Reason.UNAVAILABLE)
            self.settle(held, event)
            return
        del self._held[held.id]
        self._check_empty()
        await self._client.publish(held.message.reply, _NAK_LATER)

    def _settled(self, held: HeldTicket) -> None:
        self._settling -= 1
        self._held.pop(held.id, None)

    async def _bury(self, message: Message, problem: str) -> None:
        """What is no ticket never will be one: it goes to the dead, with why."""
        logger.error("ticket cannot be read", extra={"subject": message.subject, "problem": problem})
        try:
            headers = {"uplion-problem": problem.replace("\n", " ")[:200]}
            await self._client.publish(names.dead_subject(names.STREAM_TASKS), message.data, headers=headers)
            await self._client.publish(message.reply, b"+TERM")
        except nats.errors.Error:
            logger.exception("ticket could not be buried")
