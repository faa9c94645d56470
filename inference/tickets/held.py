"""A ticket that this worker holds, and the states it passes through."""

import math
import re
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from google.protobuf.message import DecodeError
from uplion.billing.v1.usage_event_pb2 import UsageEvent
from uplion.dispatch.v1.ticket_pb2 import Receipt, Ticket

from common import names
from inference.tickets.source import Delivery

_ID_CHARACTERS = 200
_MODEL_CHARACTERS = 256
_YEAR_10000 = 253_402_300_800  # unix seconds
_SUBJECT = re.compile(r"[!-~]{1,255}").fullmatch  # of NATS, in the characters that inboxes are made of


class TicketState(Enum):
    """Where a held ticket is. Offered and running tickets occupy a slot."""

    OFFERED = "offered"  # its router was offered the run and has not answered
    RUNNING = "running"  # its router opened the run
    DELIVERING = "delivering"  # its run is over, and its router has not said what the client was given
    SETTLING = "settling"  # its usage event is being stored, or its acknowledgement is not confirmed
    RELEASED = "released"  # acknowledged, or given back to its queue


_NEXT = {
    TicketState.OFFERED: {TicketState.RUNNING, TicketState.SETTLING, TicketState.RELEASED},
    TicketState.RUNNING: {TicketState.DELIVERING, TicketState.SETTLING},
    TicketState.DELIVERING: {TicketState.SETTLING},
    TicketState.SETTLING: {TicketState.RELEASED},
    TicketState.RELEASED: frozenset[TicketState](),
}


class MalformedTicketError(ValueError):
    """The bytes are no ticket that can be run or accounted for. Its text is why, and nothing of the content."""


def read_ticket(payload: bytes) -> Ticket:
    """Raises MalformedTicketError."""
    try:
        ticket = Ticket.FromString(payload)
    except DecodeError:
        raise MalformedTicketError("not a Ticket") from None
    caller, attempt = ticket.caller, ticket.attempt
    if not ticket.request_id or not attempt or not ticket.reply_subject:
        raise MalformedTicketError("request_id, attempt and reply_subject must be set")
    texts = (
        ticket.request_id,
        caller.account,
        caller.project,
        caller.key,
        caller.reservation,
        caller.tier,
        ticket.lane,
    )
    if not "".join(texts).isprintable() or max(map(len, texts)) > _ID_CHARACTERS:
        raise MalformedTicketError(f"an id is longer than {_ID_CHARACTERS} characters, or cannot be printed")
    if attempt >= 1 << 31:
        raise MalformedTicketError("attempt is above 2147483647")
    if not _SUBJECT(ticket.reply_subject):
        raise MalformedTicketError("reply_subject is none")
    if len(ticket.model) > _MODEL_CHARACTERS:
        raise MalformedTicketError("model is too long for a name")
    if not all(0 <= moment.seconds < _YEAR_10000 for moment in (ticket.publish_time, ticket.deadline)):
        raise MalformedTicketError("publish_time or deadline is no time")
    return ticket


class PendingOffer(Protocol):
    """An offer that its router has not answered."""

    def close(self) -> None:
        """Ignores an answer from now on. Idempotent."""


class ActiveRun(Protocol):
    """The call that works on a ticket."""

    def expire(self) -> None:
        """Ends it, since the deadline is over."""


@dataclass(slots=True, eq=False)
class HeldTicket:
    """A ticket, the delivery that brought it, and its state."""

    ticket: Ticket
    delivery: Delivery
    id: str = field(init=False)  # the attempt's, unique in this process
    traceparent: str = field(init=False)
    deadline_seconds: float = math.inf  # of its run, monotonic
    state: TicketState = TicketState.OFFERED
    since_seconds: float = field(default_factory=time.monotonic)  # when it entered the state
    renewed_seconds: float = field(default_factory=time.monotonic)  # when the queue's redelivery timer was last started
    offer: PendingOffer | None = None
    run: ActiveRun | None = None
    receipt: Receipt | None = None  # the newest
    measured: UsageEvent | None = None  # while delivering: what the run used, which its receipt may lessen
    streamed: bool = False  # to the client, too
    asked_seconds: float = 0.0  # when its receipt was asked for
    unanswered: int = 0  # times in a row that nobody was there to be asked

    def __post_init__(self) -> None:
        self.id = names.attempt_id(self.ticket.request_id, self.ticket.attempt)
        self.traceparent = self.delivery.traceparent

    def enter(self, state: TicketState) -> None:
        """Changes the state; a state that cannot follow the present one is a bug."""
        assert state in _NEXT[self.state], f"a ticket that is {self.state.value} cannot become {state.value}"
        self.state, self.since_seconds = state, time.monotonic()
        if state is not TicketState.OFFERED and self.offer is not None:
            self.offer.close()
            self.offer = None
        if state is not TicketState.RUNNING:
            self.run = None
