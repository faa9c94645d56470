"""What a router's usage events count, and how they say that the attempt ended."""

import time

import pytest
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_STOP, TokenUsage

from common.errors import Reason
from common.identity import Identity
from common.operations import BY_RPC
from router.dispatch.accounting.usage_events import usage_event
from router.dispatch.records import Record

CHAT = BY_RPC["/uplion.openai.v1.OpenAIService/CreateChatCompletion"]

IDENTITY = Identity("acme", "key1", "res1", "m", "gold", None, None, "r1")


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.INVALID_REQUEST, billing.ATTEMPT_STATUS_REFUSED),
        (Reason.MODEL_NOT_FOUND, billing.ATTEMPT_STATUS_REFUSED),
        (Reason.OVERLOADED, billing.ATTEMPT_STATUS_REFUSED),
        (Reason.CANCELLED, billing.ATTEMPT_STATUS_CANCELLED),
        (Reason.DEADLINE_EXCEEDED, billing.ATTEMPT_STATUS_TIMED_OUT),
        (Reason.WORKER_LOST, billing.ATTEMPT_STATUS_WORKER_LOST),
        (Reason.INTERNAL, billing.ATTEMPT_STATUS_FAILED),
        (Reason.UPSTREAM_FAILED, billing.ATTEMPT_STATUS_FAILED),
    ],
)
def test_an_event_says_how_the_attempt_ended(reason: Reason, status: int) -> None:
    record = Record(IDENTITY, CHAT)
    found = usage_event(record, record.attempt, reason, last=True)
    assert (found.status, found.error_reason, found.last) == (status, reason.name, True)
    assert (found.account, found.key, found.reservation, found.tier) == ("acme", "key1", "res1", "gold")
    assert (found.request_id, found.attempt, found.model, found.operation) == ("r1", 1, "m", "chat")


def test_a_lost_attempt_counts_what_was_delivered_and_its_prompt_only_when_it_is_the_last() -> None:
    record = Record(IDENTITY, CHAT)
    record.input_tokens, record.attempt.delivered_tokens = 10, 4
    lost = Reason.WORKER_LOST
    between = usage_event(record, record.attempt, lost, last=False)
    assert (between.usage.input_tokens, between.usage.output_tokens) == (0, 4)
    final = usage_event(record, record.attempt, lost, last=True)
    assert (final.usage.input_tokens, final.usage.output_tokens) == (10, 4)
    nothing = usage_event(record, record.attempt, lost, last=True, delivered=False)
    assert not nothing.HasField("usage")


def test_a_completed_attempt_is_told_as_its_worker_would_have() -> None:
    record = Record(IDENTITY, CHAT)
    attempt = record.attempt
    record.model, attempt.ticket_time_ns, record.finish_reason = "m", 5_000_000_000, FINISH_REASON_STOP
    attempt.usage = TokenUsage(input_tokens=10, cached_tokens=3, output_tokens=4)
    attempt.delivered_tokens = 4
    ended = time.time()
    attempt.ended_at = time.monotonic()
    event = usage_event(record, attempt, None, last=True)
    assert event.usage == attempt.usage
    assert (event.status, event.finish_reason) == (billing.ATTEMPT_STATUS_COMPLETED, FINISH_REASON_STOP)
    assert (event.ticket_time.seconds, event.model_served, event.last) == (5, "m", True)
    assert abs(event.end_time.ToNanoseconds() / 1e9 - ended) < 60.0
