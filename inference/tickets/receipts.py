"""Receipts: what clients were given of ended runs, as their routers say, or as it follows from a router's silence.

What a run used is measured when it ends; what of it counts is known once its router has written the answer. A router
that dies in between leaves a whole answer undelivered, and a stream as far as its last receipt.
"""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.protobuf.message import DecodeError
from uplion.billing.v1 import usage_event_pb2
from uplion.billing.v1.usage_event_pb2 import UsageEvent
from uplion.dispatch.v1 import ticket_pb2
from uplion.dispatch.v1.ticket_pb2 import Receipt

from common import names
from common.errors import Reason
from inference.tickets.held import HeldTicket, TicketState
from inference.tickets.offers import Offers, Refusal
from inference.tickets.slots import SlotManager
from messaging.connection import Connection

logger = logging.getLogger(__name__)

_ASK_SECONDS = 1.0  # without a receipt; far longer than a router takes
_GONE_AFTER = 4  # questions in a row that reached nobody: a router that only lost NATS is back by then
_OPEN = ticket_pb2.RECEIPT_STATE_UNSPECIFIED
_FAILED = ticket_pb2.RECEIPT_STATE_FAILED
_CANCELLED = usage_event_pb2.ATTEMPT_STATUS_CANCELLED
_TIMED_OUT = ticket_pb2.RECEIPT_STATE_TIMED_OUT
_ACCOUNTED = ticket_pb2.RECEIPT_STATE_ACCOUNTED


class Receipts:
    """Settles the tickets of ended runs. Made by `open`."""

    def __init__(self, slots: SlotManager, offers: Offers) -> None:
        self._slots = slots
        self._offers = offers

    @classmethod
    @asynccontextmanager
    async def open(cls, connection: Connection, slots: SlotManager, offers: Offers) -> AsyncIterator["Receipts"]:
        """Receives them while the block runs."""
        receipts = cls(slots, offers)
        async with connection.diverted(offers.receipt_subject, receipts._arrived):
            yield receipts

    def run_ended(self, held: HeldTicket, measured: UsageEvent) -> None:
        """A run whose use is to be published as far as its client was given it."""
        self._slots.deliver(held, measured)
        if held.receipt is not None and held.receipt.state != _OPEN:
            self._settle(held)

    def check(self, held: HeldTicket) -> None:
        """Asks for the receipt of an ended run once it is late, and again; to be called from time to time."""
        now = time.monotonic()
        if now - max(held.since_seconds, held.asked_seconds) >= _ASK_SECONDS:
            held.asked_seconds = now
            self._offers.ask(held, self._unanswered)

    def _unanswered(self, held: HeldTicket, refusal: Refusal) -> None:
        if refusal is Refusal.REFUSED or held.state is not TicketState.DELIVERING:
            return
        held.unanswered += 1
        if held.unanswered >= _GONE_AFTER:
            logger.warning("the router of a run is gone", extra={"attempt_id": held.id})
            self._settle(held)

    def _arrived(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        try:
            message = ticket_pb2.Receipts.FromString(payload)
        except DecodeError:
            logger.error("a receipt is not valid")
            return
        for receipt in message.receipts:
            held = self._slots.find(names.attempt_id(receipt.request_id, receipt.attempt))
            if held is None:
                continue
            held.receipt, held.unanswered = receipt, 0
            if receipt.state != _OPEN and held.state is TicketState.DELIVERING:
                self._settle(held)

    def _settle(self, held: HeldTicket) -> None:
        assert held.measured is not None  # it is delivering
        self._slots.settle(held, counted(held.measured, held.receipt, streamed=held.streamed))


def counted(measured: UsageEvent, receipt: Receipt | None, *, streamed: bool) -> UsageEvent | None:
    """What a worker publishes of a run's use; None: nothing. A receipt that is missing, or of a stream that goes on, is
    that of a router that is gone.
    """
    if receipt is not None and receipt.state == _ACCOUNTED:
        return None
    if receipt is not None and receipt.state == _FAILED:
        return _undelivered(measured, Reason.INTERNAL)
    if receipt is not None and receipt.state == _TIMED_OUT and measured.status == _CANCELLED:
        _end(measured, usage_event_pb2.ATTEMPT_STATUS_TIMED_OUT, Reason.DEADLINE_EXCEEDED)
    gone = receipt is None or receipt.state == _OPEN
    if gone and (receipt is None or not streamed):
        return _undelivered(measured, Reason.UNAVAILABLE)
    given = measured.usage.output_tokens
    if receipt is not None and receipt.HasField("output_tokens"):
        given = min(given, receipt.output_tokens)
    if given < measured.usage.output_tokens:
        measured.usage.output_tokens = given
        if measured.status == usage_event_pb2.ATTEMPT_STATUS_COMPLETED:
            _end(measured, _CANCELLED, Reason.CANCELLED)
    if gone:
        _end(measured, _CANCELLED, Reason.UNAVAILABLE)
    return measured


def _undelivered(event: UsageEvent, reason: Reason) -> UsageEvent:
    """Its tokens count nowhere: not in the cost, and in no limit."""
    event.ClearField("usage")
    event.ClearField("compute_duration")
    _end(event, usage_event_pb2.ATTEMPT_STATUS_FAILED, reason)
    return event


def _end(event: UsageEvent, status: "usage_event_pb2.AttemptStatus.ValueType", reason: Reason) -> None:
    event.status, event.error_reason = status, reason.name
    event.ClearField("finish_reason")
