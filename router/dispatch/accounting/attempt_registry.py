"""The registry of ended attempts: publishes the usage events that are the router's, and remembers the others for a
while, to publish them where a worker died before its own event was safe.

An event's key is its attempt's, so publishing one that the worker has published too is harmless.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from uplion.billing.v1.usage_event_pb2 import UsageEvent
from uplion.dispatch.v1.ticket_pb2 import ReceiptState

from common import names, telemetry
from common.errors import Reason
from messaging.bus import TASK_ACK_WAIT_SECONDS, WORKER_TTL_SECONDS
from router.dispatch.accounting.attempts import Attempt, Publisher
from router.dispatch.accounting.receipts import ACCOUNTED, ENDED, FAILED, TIMED_OUT
from router.dispatch.accounting.usage_events import usage_event
from router.dispatch.jobs import Delivery
from router.dispatch.records import Record

logger = logging.getLogger(__name__)

REMEMBERED_SECONDS = 3 * TASK_ACK_WAIT_SECONDS  # a dead worker's ticket comes back after one ack wait
# Within this time a worker's event is acknowledged or on its disk. Its entry in KV outlives the worker by the TTL.
_UNSAFE_SECONDS = 5.0
_GONE_SECONDS = _UNSAFE_SECONDS + WORKER_TTL_SECONDS
_GONE_REMEMBERED = 1000
_THE_CLIENTS = frozenset({Reason.CANCELLED, Reason.DEADLINE_EXCEEDED})  # ends that are no failure of the platform


class UsageOutbox(Protocol):
    """Where usage events go."""

    @property
    def blocked(self) -> bool:
        """Events can be neither sent nor spooled."""

    def put(self, event: UsageEvent, *, traceparent: str = "") -> None:
        """Takes an event and returns at once."""


class ModelCatalog(Protocol):
    """Which models exist."""

    def knows(self, model: str) -> bool:
        """Whether there is such a model now."""


class ReceiptSender(Protocol):
    """Informs workers of what the client was given."""

    def begin(self, record: Record) -> None:
        """The current attempt was offered to a worker."""

    def end(self, record: Record, attempt: Attempt, state: "ReceiptState.ValueType") -> None:
        """The attempt has ended, and its answer has been written as far as it will be."""

    def missing(self, request_id: str, attempt: int, subject: str) -> None:
        """A worker waits for a receipt."""


class _Ended(NamedTuple):
    """An attempt whose event its worker publishes."""

    at: float
    worker_id: str
    event: Callable[[], UsageEvent]


class AttemptRegistry:
    """Accounts for attempts by `attempts.ACCOUNTING`; observes offers and workers."""

    def __init__(
        self,
        outbox: UsageOutbox,
        models: ModelCatalog,
        receipts: ReceiptSender,
        capacity: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._receipts = receipts
        self._models = models
        self._capacity = capacity
        self._clock = clock
        self._ended: OrderedDict[str, _Ended] = OrderedDict()  # by the attempt's id, oldest first
        self._gone: OrderedDict[str, float] = OrderedDict()  # workers, and when each was found lost

    @property
    def blocked(self) -> bool:
        """What is begun now could perhaps not be billed."""
        return self._outbox.blocked

    def attempt_ended(self, record: Record, reason: Reason) -> None:
        """The current attempt failed, and another one follows, which is current from now on."""
        attempt = record.attempt
        self._receipts.end(record, attempt, _receipt_state(attempt, reason))
        attempt.ended_at, attempt.reason = time.monotonic(), reason
        record.attempts.append(Attempt(attempt.number + 1))
        if not record.identity.reservation:
            return
        if attempt.accounting.publisher is Publisher.WORKER:
            self._remember(record, attempt, partial(usage_event, record, attempt, reason, last=False))
        elif record.delivery is Delivery.STREAM:
            self._publish(usage_event(record, attempt, reason, last=False))
        # else the client gets all of the answer or nothing: whether the lost part counts is known at the request's end

    def request_ended(self, record: Record, reason: Reason | None) -> None:
        """The request is over, and with it the current attempt; `reason`: why it failed, None: it did not."""
        last = record.attempt
        last.ended_at = record.ended_at
        if reason is not None and record.delivery is Delivery.STREAM and record.given_exactly:
            last.delivered_tokens = min(last.delivered_tokens, record.given_of(last))
        self._receipts.end(record, last, _receipt_state(last, reason))
        if not record.identity.reservation:
            return
        delivered = reason is None or record.delivery is Delivery.STREAM
        if record.delivery is not Delivery.STREAM:
            for attempt in record.attempts[:-1]:
                if attempt.accounting.publisher is Publisher.ROUTER:
                    event = usage_event(record, attempt, attempt.reason, last=False)
                    if not delivered:
                        event.ClearField("usage")
                    self._publish(event)
        if last.accounting.publisher is Publisher.WORKER:
            counts = delivered or (last.usage is not None and reason in _THE_CLIENTS)
            self._remember(record, last, partial(usage_event, record, last, reason, last=True, delivered=counts))
            return
        event = usage_event(record, last, reason, last=True, delivered=delivered)
        if not self._models.knows(event.model):
            event.model = ""  # a client's invention must not fill the ledger's sums
        self._publish(event)

    def unexpected_offer(self, attempt_id: str) -> None:
        """The ticket of an ended attempt came to a worker again: the first one did not acknowledge it."""
        ended = self._ended.pop(attempt_id, None)
        if ended is not None:
            logger.warning("usage published for a lost worker", extra={"worker_id": ended.worker_id, "attempts": 1})
            self._publish(ended.event())

    def attempt_offered(self, record: Record) -> None:
        """A worker offered to run the current attempt: it lives, and publishes its events itself."""
        self._gone.pop(record.attempt.worker_id, None)
        self._receipts.begin(record)

    def receipt_missing(self, request_id: str, attempt: int, subject: str) -> None:
        """A worker's run has ended, and what the client was given of it is not known there."""
        self._receipts.missing(request_id, attempt, subject)

    def worker_broke_off(self, worker_id: str) -> None:
        """A run was cut: events of attempts that ended just before may not have reached the stream."""
        self._publish_for(worker_id, _UNSAFE_SECONDS)

    def worker_gone(self, worker_id: str) -> None:
        """The worker's entry has expired."""
        self._publish_for(worker_id, _GONE_SECONDS)

    def _remember(self, record: Record, attempt: Attempt, event: Callable[[], UsageEvent]) -> None:
        worker_id, now = attempt.worker_id, self._clock()
        if now - self._gone.get(worker_id, -_UNSAFE_SECONDS) < _UNSAFE_SECONDS:
            self._publish(event())
            return
        ended = self._ended
        ended[names.attempt_id(record.identity.request_id, attempt.number)] = _Ended(now, worker_id, event)
        while len(ended) > self._capacity or next(iter(ended.values())).at < now - REMEMBERED_SECONDS:
            ended.popitem(last=False)

    def _publish(self, event: UsageEvent) -> None:
        self._outbox.put(event, traceparent=telemetry.traceparent.get())

    def _publish_for(self, worker_id: str, seconds: float) -> None:
        now = self._clock()
        if seconds == _UNSAFE_SECONDS and now - self._gone.get(worker_id, -1.0) < 1.0:
            return  # each of its runs is cut, and the first one was enough
        self._gone[worker_id] = now
        if len(self._gone) > _GONE_REMEMBERED:
            self._gone.popitem(last=False)
        found: list[str] = []
        for attempt_id, ended in reversed(self._ended.items()):
            if ended.at < now - seconds:
                break
            if ended.worker_id == worker_id:
                found.append(attempt_id)
        if found:
            logger.warning("usage published for a lost worker", extra={"worker_id": worker_id, "attempts": len(found)})
        for attempt_id in reversed(found):
            self._publish(self._ended.pop(attempt_id).event())


def _receipt_state(attempt: Attempt, reason: Reason | None) -> "ReceiptState.ValueType":
    if attempt.accounting.publisher is Publisher.ROUTER:
        return ACCOUNTED
    if reason is Reason.DEADLINE_EXCEEDED:
        return TIMED_OUT
    return ENDED if reason is None or reason in _THE_CLIENTS else FAILED
