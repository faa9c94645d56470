"""What the router tells the meter: of attempts without a worker, and again of those whose worker died too soon."""

import time

import pytest
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_STOP, TokenUsage

from common.errors import Reason, UplionError
from common.identity import Identity
from router.dispatch.jobs import Operation
from router.dispatch.records import Record
from router.dispatch.usage_events import Usage


class Outbox:
    """Takes everything."""

    def __init__(self) -> None:
        self.blocked = False
        self.events: list[billing.UsageEvent] = []

    def put(self, event: billing.UsageEvent, *, traceparent: str = "") -> None:
        self.events.append(event)

    def taken(self) -> list[str]:
        """The requests of what came since the last time."""
        requests = [event.request_id for event in self.events]
        self.events.clear()
        return requests


class World:
    """A Usage whose clock is the test's."""

    def __init__(self, capacity: int = 100) -> None:
        self.now = 1000.0
        self.outbox = Outbox()
        self.usage = Usage(self.outbox, capacity, lambda: self.now)  # type: ignore[arg-type]

    def ended(self, name: str, worker: str = "w") -> None:
        self.usage.remember(name, worker, lambda: billing.UsageEvent(request_id=name))


def test_an_attempt_whose_ticket_comes_back_is_told_once() -> None:
    world = World()
    world.ended("a")
    world.ended("b")
    world.usage.tell_again("a")
    world.usage.tell_again("a")
    world.usage.tell_again("unknown")
    assert world.outbox.taken() == ["a"]


def test_what_a_worker_had_just_ended_is_told_when_it_breaks_off() -> None:
    world = World()
    world.ended("old")
    world.now += 6
    world.ended("other", "another")
    world.ended("new")
    world.usage.worker_broke("w")
    world.usage.worker_broke("w")
    assert world.outbox.taken() == ["new"]
    world.ended("late")  # its reader was slow: the router saw its end only now
    assert world.outbox.taken() == ["late"]
    world.now += 6
    world.ended("back again")
    assert world.outbox.taken() == []


def test_a_worker_that_vanished_may_have_died_as_long_ago_as_its_entry_lives() -> None:
    world = World()
    world.ended("older")
    world.now += 5
    world.ended("old")
    world.now += 12
    world.usage.worker_gone("w")
    assert world.outbox.taken() == ["old"]


def test_what_is_remembered_is_bounded_by_number_and_age() -> None:
    world = World(capacity=2)
    for name in "abc":
        world.ended(name)
    for name in "abc":
        world.usage.tell_again(name)
    assert world.outbox.taken() == ["b", "c"]
    world.ended("d")
    world.now += 91
    world.ended("e")
    world.usage.tell_again("d")
    assert world.outbox.taken() == []


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


def test_a_completed_attempt_is_told_as_its_worker_would_have() -> None:
    record = Record(IDENTITY, Operation.CHAT, "openai")
    record.model, record.ticket_time_ns, record.finish_reason = "m", 5_000_000_000, FINISH_REASON_STOP
    record.attempt_usage = TokenUsage(input_tokens=10, cached_tokens=3, output_tokens=4)
    record.delivered_tokens = 4
    ended = time.time()
    record.ended_at = time.monotonic()
    event = record.usage_event(None, last=True)
    assert event.usage == record.attempt_usage
    assert (event.status, event.finish_reason) == (billing.ATTEMPT_STATUS_COMPLETED, FINISH_REASON_STOP)
    assert (event.ticket_time.seconds, event.model_served, event.last) == (5, "m", True)
    assert abs(event.end_time.ToNanoseconds() / 1e9 - ended) < 60.0
