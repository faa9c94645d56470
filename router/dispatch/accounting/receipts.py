"""Receipts: what the client was given of each run, for the worker that publishes the run's usage event.

A router that dies tells nobody what its clients had. So a worker publishes no more than what a receipt says, and one
whose router vanished without a receipt knows that the answer was not delivered, or how far a stream had come.
"""

import logging
from asyncio import sleep
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import nats.errors
from uplion.dispatch.v1 import ticket_pb2
from uplion.dispatch.v1.ticket_pb2 import Receipt

from common import names
from common.lifecycle import not_cancelled
from messaging.connection import Connection
from router.dispatch.accounting.attempts import Attempt
from router.dispatch.jobs import Delivery
from router.dispatch.records import Record

logger = logging.getLogger(__name__)

ENDED, FAILED = ticket_pb2.RECEIPT_STATE_ENDED, ticket_pb2.RECEIPT_STATE_FAILED
ACCOUNTED, TIMED_OUT = ticket_pb2.RECEIPT_STATE_ACCOUNTED, ticket_pb2.RECEIPT_STATE_TIMED_OUT
_EVERY_SECONDS = 0.25  # what a stream is billed too little when its router dies
_PER_MESSAGE = 1000  # receipts of about 60 bytes


@dataclass(slots=True)
class _Open:
    """An attempt on a worker that waits for its receipt."""

    record: Record
    attempt: Attempt
    reported_tokens: int = 0


class _Sent(NamedTuple):
    subject: str
    payload: bytes


class Receipts:
    """Sends them: at an attempt's end, and for streams while `run` runs."""

    def __init__(self, connection: Connection, remembered: int) -> None:
        self._connection = connection
        self._remembered = remembered
        self._open: dict[str, _Open] = {}  # by the attempt's id
        self._sent: OrderedDict[str, _Sent] = OrderedDict()

    def begin(self, record: Record) -> None:
        """The current attempt was offered to a worker."""
        if record.attempt.receipt_subject:
            self._open[_id(record, record.attempt)] = _Open(record, record.attempt)

    def end(self, record: Record, attempt: Attempt, state: "ticket_pb2.ReceiptState.ValueType") -> None:
        """The attempt has ended, and its answer has been written to the edge as far as it will be."""
        attempt_id = _id(record, attempt)
        if self._open.pop(attempt_id, None) is None:
            return
        receipt = Receipt(request_id=record.identity.request_id, attempt=attempt.number, state=state)
        if state in (ENDED, TIMED_OUT) and record.delivery is Delivery.STREAM and record.given_exactly:
            receipt.output_tokens = record.given_of(attempt)
        payload = ticket_pb2.Receipts(receipts=[receipt]).SerializeToString()
        self._sent[attempt_id] = _Sent(attempt.receipt_subject, payload)
        if len(self._sent) > self._remembered:
            self._sent.popitem(last=False)
        self._send(attempt.receipt_subject, payload)
        # Before the client can have seen the end: else it could have an answer for which no receipt ever comes.
        self._connection.push()

    def missing(self, request_id: str, attempt: int, subject: str) -> None:
        """A worker's run has ended, and it waits for the receipt. While the client is being written to, so must it."""
        attempt_id = names.attempt_id(request_id, attempt)
        if attempt_id in self._open:
            return
        sent = self._sent.get(attempt_id)
        if sent is None:  # forgotten, so it has ended long ago
            logger.warning("a receipt was asked for that is not known", extra={"attempt_id": attempt_id})
            known = Receipt(request_id=request_id, attempt=attempt, state=ENDED)
            self._send(subject, ticket_pb2.Receipts(receipts=[known]).SerializeToString())
        else:
            self._send(subject, sent.payload)

    async def run(self) -> None:
        """Reports how far streams have come, all of a worker's in one message; until cancelled."""
        while not_cancelled():
            await sleep(_EVERY_SECONDS)
            for subject, receipts in self._progress().items():
                for start in range(0, len(receipts), _PER_MESSAGE):
                    part = ticket_pb2.Receipts(receipts=receipts[start : start + _PER_MESSAGE])
                    self._send(subject, part.SerializeToString())

    def _progress(self) -> dict[str, list[Receipt]]:
        progress: dict[str, list[Receipt]] = defaultdict(list)
        for each in self._open.values():
            record, attempt = each.record, each.attempt
            given = record.given_of(attempt)
            if given == each.reported_tokens:
                continue
            each.reported_tokens = given
            receipt = Receipt(request_id=record.identity.request_id, attempt=attempt.number)
            if record.given_exactly:
                receipt.output_tokens = given
            progress[attempt.receipt_subject].append(receipt)
        return progress

    def _send(self, subject: str, payload: bytes) -> None:
        try:
            self._connection.send(subject, payload, now=False)
        except (nats.errors.Error, OSError) as problem:  # the worker asks again
            logger.warning("a receipt was not sent", extra={"problem": repr(problem)})


def _id(record: Record, attempt: Attempt) -> str:
    return names.attempt_id(record.identity.request_id, attempt.number)
