"""The usage events of a worker: what each attempt used, for the ledger, and the same in metrics, log and spans."""

import logging
import time
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from uplion.billing.v1.usage_event_pb2 import AttemptStatus, UsageEvent
from uplion.dispatch.v1.ticket_pb2 import Ticket
from uplion.inference.v1.sampling_pb2 import FinishReason, TokenUsage

from common import telemetry
from common.boundary import Boundary
from common.errors import ELSEWHERE, Reason
from common.metrics import OBSERVATIONS_FAILED
from inference import metrics
from inference.engines.output import Output

logger = logging.getLogger(__name__)

_COUNT_MAX = (1 << 32) - 1  # of TokenUsage
_observing = Boundary("an attempt was not measured", logger, OBSERVATIONS_FAILED.labels("attempt"))
_STATUS_WORDS = {number: name.removeprefix("ATTEMPT_STATUS_").lower() for name, number in AttemptStatus.items()}


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that an engine took on."""

    ticket: Ticket
    operation: str  # chat, completion or embedding
    output: Output
    queue_seconds: float  # from the ticket's publication to the offer, as its router measured it
    traceparent: str
    started_seconds: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class _Times:
    """What an ended attempt took. Durations are of one clock each, and no clock is compared with another machine's."""

    ended_seconds: float  # unix time
    run_seconds: float
    queue_seconds: float
    first_token_seconds: float | None  # from the start to the first token; None: there was none

    @classmethod
    def of(cls, attempt: Attempt) -> "_Times":
        started_seconds, first = attempt.started_seconds, attempt.output.first_token_seconds
        return cls(
            time.time(),
            time.monotonic() - started_seconds,
            attempt.queue_seconds,
            max(0.0, first - started_seconds) if first else None,
        )


class _Metrics:
    """The worker's series, with their labels looked up once: a look-up costs as much as the increment."""

    def __init__(self, model: str) -> None:
        self._prompt_tokens = metrics.VLLM_PROMPT_TOKENS.labels(model)
        self._generation_tokens = metrics.VLLM_GENERATION_TOKENS.labels(model)
        self._prefix_queries = metrics.VLLM_PREFIX_QUERIES.labels(model)
        self._prefix_hits = metrics.VLLM_PREFIX_HITS.labels(model)
        self._first_token = metrics.VLLM_FIRST_TOKEN.labels(model)
        self._latency = metrics.VLLM_LATENCY.labels(model)
        self._queue_time = metrics.VLLM_QUEUE_TIME.labels(model)
        self._attempts = {word: metrics.ATTEMPTS.labels(word) for word in _STATUS_WORDS.values()}
        self._success = {
            number: metrics.VLLM_SUCCESS.labels(model, name.removeprefix("FINISH_REASON_").lower())
            for name, number in FinishReason.items()
            if number
        }

    def ended(self, attempt: Attempt, status: str, times: _Times) -> None:
        output = attempt.output
        self._attempts[status].inc()
        self._prompt_tokens.inc(output.input_tokens)
        self._generation_tokens.inc(output.output_tokens)
        self._prefix_queries.inc(output.input_tokens)
        if output.cached_tokens:
            self._prefix_hits.inc(output.cached_tokens)
        self._queue_time.observe(times.queue_seconds)
        self._latency.observe(times.queue_seconds + times.run_seconds)
        if times.first_token_seconds is not None:
            self._first_token.observe(times.queue_seconds + times.first_token_seconds)
        if output.finish_reason:
            self._success[output.finish_reason].inc()


class UsageRecorder:
    """Makes the usage events of one worker, and counts what ended in its metrics, log and spans."""

    def __init__(self, *, model: str, revision: int, provider: str) -> None:
        self._model = model
        self._revision = revision
        self._provider = provider
        self._metrics = _Metrics(model)

    def never_ran(self, ticket: Ticket, status: "AttemptStatus.ValueType", reason: Reason) -> UsageEvent:
        """The event of an attempt that no engine took on."""
        event = self._event(ticket, status, time.time())
        event.error_reason = reason.name
        return event

    def ran(self, attempt: Attempt, status: "AttemptStatus.ValueType", reason: Reason | None) -> UsageEvent:
        """The event of an attempt that an engine took on, however it ended."""
        times = _Times.of(attempt)
        output = attempt.output
        event = self._event(attempt.ticket, status, times.ended_seconds)
        event.model_served = self._model
        event.model_revision = self._revision
        event.provider = self._provider
        event.operation = attempt.operation
        event.usage.CopyFrom(token_usage(output))
        _set(event.queue_duration, times.queue_seconds)
        _set(event.duration, times.queue_seconds + times.run_seconds)
        if times.first_token_seconds is not None:
            _set(event.first_token_duration, times.first_token_seconds)
        if output.compute_seconds is not None:
            _set(event.compute_duration, output.compute_seconds)
        event.finish_reason = output.finish_reason
        if reason is not None:
            event.error_reason = reason.name
            event.last = reason not in ELSEWHERE
        with _observing:
            self._observe(attempt, _STATUS_WORDS[status], times, reason)
        return event

    def _observe(self, attempt: Attempt, status: str, times: _Times, reason: Reason | None) -> None:
        output = attempt.output
        logger.log(
            # A completed one is in the ledger and in the router's log; its line here would cost a tenth of its work.
            logging.DEBUG if reason is None else logging.INFO,
            "attempt ended",
            extra={
                "request_id": attempt.ticket.request_id,
                "attempt": attempt.ticket.attempt,
                "status": status,
                "output_tokens": output.output_tokens,
            },
        )
        self._metrics.ended(attempt, status, times)
        telemetry.finished_span(
            f"inference.{attempt.operation}",
            attempt.traceparent,
            times.ended_seconds - times.run_seconds,
            times.ended_seconds,
            {
                "gen_ai.response.model": self._model,
                "gen_ai.usage.input_tokens": output.input_tokens,
                "gen_ai.usage.output_tokens": output.output_tokens,
                "uplion.status": status,
            },
        )

    def _event(self, ticket: Ticket, status: "AttemptStatus.ValueType", now_seconds: float) -> UsageEvent:
        event = UsageEvent(
            request_id=ticket.request_id,
            attempt=ticket.attempt,
            account=ticket.caller.account,
            project=ticket.caller.project,
            key=ticket.caller.key,
            reservation=ticket.caller.reservation,
            tier=ticket.caller.tier,
            model=ticket.model,
            lane=ticket.lane,
            status=status,
            last=True,
            ticket_time=ticket.publish_time,
        )
        _set(event.end_time, now_seconds)
        return event


def token_usage(output: Output) -> TokenUsage:
    """What the engine counted; an upstream may say anything, and what is no count must not cost the event."""
    return TokenUsage(
        input_tokens=_count(output.input_tokens),
        cached_tokens=_count(output.cached_tokens),
        output_tokens=_count(output.output_tokens),
    )


def _count(number: int) -> int:
    return min(max(number, 0), _COUNT_MAX)


def _set(target: Timestamp | Duration, seconds: float) -> None:
    """FromNanoseconds without its checks, which cost as much as the rest of the event."""
    whole = int(seconds)
    target.seconds, target.nanos = whole, int((seconds - whole) * 1e9)
