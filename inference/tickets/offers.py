"""Offers of a run to the router that published the ticket, and the router's answers, over core NATS."""

import logging
from collections.abc import Callable
from enum import Enum
from functools import partial

import nats.errors
from uplion.dispatch.v1.ticket_pb2 import Offer

from common import telemetry
from inference.tickets.held import HeldTicket
from messaging.connection import Send
from messaging.inbox import Inbox
from messaging.pull import Message

logger = logging.getLogger(__name__)


class Refusal(Enum):
    """Why an offer will not be taken. (A router takes an offer by opening the run.)"""

    REFUSED = "refused"  # the router does not need this attempt
    NO_ROUTER = "no router"  # the ticket's reply subject has no subscriber


class Offers:
    """Publishes the offers of one worker."""

    def __init__(self, send: Send, inbox: Inbox, *, worker_id: str, receipt_subject: str) -> None:
        self._send = send
        self._inbox = inbox
        self._worker_id = worker_id
        self.receipt_subject = receipt_subject  # where it listens for receipts
        self.address = ""  # of its WorkerService, once that serves

    def send(self, held: HeldTicket, on_refusal: Callable[[HeldTicket, Refusal], None]) -> None:
        """Offers the ticket's run; `on_refusal` is called at most once, and not after the offer was closed.

        While NATS is away its client keeps the offer, as far as there is room; one that is lost expires unanswered.
        """
        self._publish(held, partial(_answered, held, on_refusal), ended=False)

    def ask(self, held: HeldTicket, on_refusal: Callable[[HeldTicket, Refusal], None]) -> None:
        """Asks for the receipt of a run that has ended; `on_refusal` is called when nobody is there to answer."""
        if held.offer is not None:  # the question before
            held.offer.close()
        self._publish(held, partial(_answered, held, on_refusal), ended=True)

    def _publish(self, held: HeldTicket, on_answer: Callable[[Message], None], *, ended: bool) -> None:
        subject = self._inbox.expect(on_answer)
        held.offer = _Offer(self._inbox, subject)
        offer = Offer(
            request_id=held.ticket.request_id,
            attempt=held.ticket.attempt,
            worker_id=self._worker_id,
            address=self.address,
            receipt_subject=self.receipt_subject,
            ended=ended,
        )
        headers = {telemetry.TRACEPARENT: held.traceparent} if held.traceparent else None
        payload = offer.SerializeToString()
        try:
            self._send(held.ticket.reply_subject, payload, subject, headers=headers)
        except (nats.errors.Error, OSError) as problem:
            logger.warning("offer not sent", extra={"problem": repr(problem)})


class _Offer:
    """The inbox subject that an offer's answer would arrive on."""

    __slots__ = ("_inbox", "_subject")

    def __init__(self, inbox: Inbox, subject: str) -> None:
        self._inbox = inbox
        self._subject = subject

    def close(self) -> None:
        self._inbox.forget(self._subject)


def _answered(held: HeldTicket, on_refusal: Callable[[HeldTicket, Refusal], None], answer: Message) -> None:
    on_refusal(held, Refusal.NO_ROUTER if answer.no_responders else Refusal.REFUSED)
