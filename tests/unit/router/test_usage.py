"""Owed usage events: never in the way of an answer, and sent until they are acknowledged."""

import asyncio
from collections.abc import AsyncIterator

import nats.errors
import pytest
from uplion.billing.v1 import usage_event_pb2 as billing

from common.errors import Reason, UplionError
from common.identity import Identity
from router.jobs import Operation
from router.records import Record
from router.usage import UsageReporter


class Bus:
    """Fails as often as it is told to."""

    def __init__(self) -> None:
        self.failures = 0
        self.sent: list[tuple[str, str]] = []

    async def publish(self, subject: str, payload: bytes, *, message_id: str = "", timeout: float = 0) -> None:
        if self.failures:
            self.failures -= 1
            raise nats.errors.NoRespondersError
        self.sent.append((subject, message_id))


@pytest.fixture
async def reporter() -> AsyncIterator[tuple[UsageReporter, Bus]]:
    bus = Bus()
    reporting = UsageReporter(bus, 3)
    task = asyncio.create_task(reporting.run())
    yield reporting, bus
    task.cancel()
    await asyncio.wait([task])


def event(number: int) -> billing.UsageEvent:
    return billing.UsageEvent(request_id=f"r{number}", attempt=1, model="m")


async def test_an_event_is_tried_until_it_is_acknowledged(reporter: tuple[UsageReporter, Bus]) -> None:
    reporting, bus = reporter
    bus.failures = 2
    reporting.report(event(1))
    await reporting.drain(5)
    assert bus.sent == [("usage.m", "r1.1")]


async def test_the_oldest_is_lost_when_too_many_wait(reporter: tuple[UsageReporter, Bus]) -> None:
    reporting, bus = reporter
    for number in range(5):
        reporting.report(event(number))
    await reporting.drain(5)
    assert [identifier for _, identifier in bus.sent] == ["r2.1", "r3.1", "r4.1"]


async def test_a_drain_ends_in_time_even_when_nobody_takes_the_events(reporter: tuple[UsageReporter, Bus]) -> None:
    reporting, bus = reporter
    bus.failures = 10**9
    reporting.report(event(1))
    async with asyncio.timeout(60):
        await reporting.drain(0.05)


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
    record = Record(IDENTITY, Operation.CHAT, "openai")
    found = record.usage_event(UplionError(reason, "x"), last=True)
    assert (found.status, found.error_reason, found.last) == (status, reason.name, True)
    assert (found.account, found.key, found.reservation, found.tier) == ("acme", "key1", "res1", "gold")
    assert (found.request_id, found.attempt, found.model, found.operation) == ("r1", 1, "m", "chat")


def test_a_lost_attempt_counts_what_was_delivered_and_its_prompt_only_when_it_is_the_last() -> None:
    record = Record(IDENTITY, Operation.CHAT, "openai")
    record.input_tokens, record.delivered_tokens = 10, 4
    lost = UplionError(Reason.WORKER_LOST, "x")
    between = record.usage_event(lost, last=False)
    assert (between.usage.input_tokens, between.usage.output_tokens) == (0, 4)
    final = record.usage_event(lost, last=True)
    assert (final.usage.input_tokens, final.usage.output_tokens) == (10, 4)


def test_nothing_is_owed_without_a_reservation() -> None:
    identity = Identity("acme", "key1", "", "m", "default", None, None, "r1")
    assert not Record(identity, Operation.CHAT, "openai").owed
