"""The record of one request: what happened to it and when, for its log line, its metrics and its usage event."""

import time

from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.inference.v1.sampling_pb2 import BudgetCut, FinishReason, TokenUsage

from common import names
from common.errors import Reason, UplionError
from common.identity import Identity
from router.dispatch.jobs import Operation

_STATUSES = {
    Reason.CANCELLED: billing.ATTEMPT_STATUS_CANCELLED,
    Reason.DEADLINE_EXCEEDED: billing.ATTEMPT_STATUS_TIMED_OUT,
    Reason.WORKER_LOST: billing.ATTEMPT_STATUS_WORKER_LOST,
    Reason.INTERNAL: billing.ATTEMPT_STATUS_FAILED,
    Reason.UPSTREAM_FAILED: billing.ATTEMPT_STATUS_FAILED,
}


class Record:
    """Written to by whoever carries the request, read once at its end. Times are monotonic seconds."""

    __slots__ = (
        "attempt",
        "attempt_usage",
        "begun_at",
        "budget_cut",
        "delivered_tokens",
        "ended_at",
        "finish_reason",
        "first_token_at",
        "identity",
        "input_tokens",
        "lane",
        "model",
        "offered_at",
        "operation",
        "owed",
        "published_at",
        "stream",
        "surface",
        "ticket_time_ns",
        "usage",
        "whole",
        "withheld",
        "worker_id",
    )

    def __init__(self, identity: Identity, operation: Operation, surface: str) -> None:
        self.identity = identity
        self.operation = operation
        self.surface = surface  # "openai" or "native"
        self.stream = False
        self.whole = False  # the client gets all of the answer or nothing
        self.withheld: list[billing.UsageEvent] = []  # of lost attempts, until it is known whether their part counts
        self.model = ""  # a model that exists: safe as a metric label; empty until the table knew it
        self.lane = names.LANE_DEFAULT
        self.attempt = 1
        self.owed = bool(identity.reservation)  # the current attempt's usage event is the router's to publish
        self.begun_at = time.monotonic()
        self.ended_at: float | None = None
        self.published_at: float | None = None
        self.offered_at: float | None = None
        self.first_token_at: float | None = None
        self.ticket_time_ns: int | None = None  # unix, of the current attempt's ticket
        self.worker_id = ""
        self.input_tokens = 0
        self.delivered_tokens = 0  # by the current attempt
        self.attempt_usage: TokenUsage | None = None  # what the worker counted, once the current attempt is complete
        self.usage: TokenUsage | None = None  # of the whole request, once it is complete
        self.finish_reason: FinishReason.ValueType = 0  # type: ignore[assignment]  # unspecified
        self.budget_cut: BudgetCut | None = None  # a budget ended the answer: for the client and the log

    @property
    def seconds(self) -> float:
        """From arrival to end, or until now."""
        return (self.ended_at or time.monotonic()) - self.begun_at

    @property
    def queue_seconds(self) -> float | None:
        """From the last ticket to the offer that was taken."""
        if self.offered_at is None or self.published_at is None:
            return None
        return self.offered_at - self.published_at

    @property
    def first_token_seconds(self) -> float | None:
        """From arrival to the first token."""
        return None if self.first_token_at is None else self.first_token_at - self.begun_at

    def facts(self, status: str) -> dict[str, object]:
        """The log line: counts and times, never text."""
        facts: dict[str, object] = {
            "surface": self.surface,
            "operation": self.operation.value,
            "model": self.model,
            "stream": self.stream,
            "status": status,
            "attempts": self.attempt,
            "milliseconds": round(self.seconds * 1000, 1),
        }
        if (queued := self.queue_seconds) is not None:
            facts["queue_milliseconds"] = round(queued * 1000, 1)
        if (first := self.first_token_seconds) is not None:
            facts["first_token_milliseconds"] = round(first * 1000, 1)
        if self.usage is not None:
            facts["input_tokens"] = self.usage.input_tokens
            facts["output_tokens"] = self.usage.output_tokens
        if self.budget_cut is not None:
            facts["budget"] = self.budget_cut.limit
        return facts

    def next_attempt(self) -> None:
        """The attempt is over and accounted for; what follows is another one."""
        self.attempt += 1
        self.owed = bool(self.identity.reservation)
        self.published_at = self.offered_at = self.ticket_time_ns = None
        self.delivered_tokens = 0
        self.attempt_usage = None
        self.worker_id = ""

    def usage_event(self, error: UplionError | None, *, last: bool) -> billing.UsageEvent:
        """The current attempt as the meter sees it, where no worker can tell, or one may have died before it did.

        A lost worker's attempt counts what the client was given of it: nothing of an answer that never became whole.
        Its prompt is counted once: by the attempt that completes, or here when none follows.
        """
        identity = self.identity
        now = time.monotonic()
        ended = self.ended_at or now
        started = self.begun_at if self.published_at is None else self.published_at
        event = billing.UsageEvent(
            request_id=identity.request_id,
            attempt=self.attempt,
            account=identity.account,
            project=identity.project,
            key=identity.key,
            model=identity.model,
            lane=self.lane,
            tier=identity.tier,
            reservation=identity.reservation,
            operation=self.operation.value,
            last=last,
        )
        event.end_time.FromNanoseconds(time.time_ns() - int((now - ended) * 1e9))
        event.duration.FromNanoseconds(int((ended - started) * 1e9))
        if self.ticket_time_ns is not None:
            event.ticket_time.FromNanoseconds(self.ticket_time_ns)
        if (queued := self.queue_seconds) is not None:
            event.queue_duration.FromNanoseconds(int(queued * 1e9))
        if self.attempt_usage is not None:
            event.model_served = self.model
            event.usage.CopyFrom(self.attempt_usage)
            event.finish_reason = self.finish_reason
        elif self.delivered_tokens and not (self.whole and last and error is not None):
            event.model_served = self.model
            event.usage.output_tokens = self.delivered_tokens
            if last:
                event.usage.input_tokens = self.input_tokens
        if error is None:
            event.status = billing.ATTEMPT_STATUS_COMPLETED
        else:
            event.error_reason = error.reason.name
            event.status = _STATUSES.get(error.reason, billing.ATTEMPT_STATUS_REFUSED)
        return event
