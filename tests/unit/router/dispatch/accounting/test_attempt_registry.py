"""Each ended attempt is published by the router, or remembered in case its worker dies, as its state says."""

import time

import pytest
from uplion.billing.v1 import usage_event_pb2 as billing

from common.errors import Reason
from common.identity import Identity
from common.operations import BY_RPC
from router.dispatch.accounting.attempt_registry import AttemptRegistry
from router.dispatch.accounting.attempts import ACCOUNTING, Attempt, Fallback, Publisher, State
from router.dispatch.jobs import Delivery
from router.dispatch.records import Record
from tests.unit.router.dispatch.accounting.test_attempts import attempt_in

CHAT = BY_RPC["/uplion.openai.v1.OpenAIService/CreateChatCompletion"]

LOST = Reason.WORKER_LOST


class Outbox:
    """Takes everything."""

    blocked = False

    def __init__(self) -> None:
        self.events: list[billing.UsageEvent] = []

    def put(self, event: billing.UsageEvent, *, traceparent: str = "") -> None:
        self.events.append(event)


class Models:
    """Only `m` exists."""

    def knows(self, model: str) -> bool:
        return model == "m"


class Receipts:
    """Keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, int]] = []

    def begin(self, record: Record) -> None:
        """Needed by the protocol only."""

    def end(self, record: Record, attempt: Attempt, state: int) -> None:
        self.sent.append((record.identity.request_id, attempt.number, state))

    def missing(self, request_id: str, attempt: int, subject: str) -> None:
        """Needed by the protocol only."""


class World:
    """A registry whose clock is the test's."""

    def __init__(self, capacity: int = 100) -> None:
        self.now = 1000.0
        self.outbox = Outbox()
        self.receipts = Receipts()
        self.registry = AttemptRegistry(self.outbox, Models(), self.receipts, capacity, lambda: self.now)

    def ended(self, name: str, worker: str = "w") -> None:
        """A request whose only attempt is complete."""
        record = record_in(State.COMPLETE, name, worker)
        self.registry.request_ended(record, None)

    def published(self) -> list[str]:
        """The requests of what came since the last time."""
        requests = [event.request_id for event in self.outbox.events]
        self.outbox.events.clear()
        return requests


def record_in(state: State, name: str = "r1", worker: str = "w", *, reservation: str = "res1") -> Record:
    record = Record(Identity("acme", "key1", reservation, "m", "gold", None, None, name), CHAT)
    record.model = "m"
    record.attempts[0] = attempt_in(state, worker_id=worker)
    record.ended_at = time.monotonic()
    return record


CELLS = [(state, follows) for state in State for follows in (False, True)]


@pytest.mark.parametrize(("state", "follows"), CELLS)
def test_each_cell_of_the_table(state: State, follows: bool) -> None:
    """Whether the request ends with the attempt or another one follows; then the worker dies."""
    world = World()
    record = record_in(state)
    if follows:
        world.registry.attempt_ended(record, LOST)
        assert [attempt.number for attempt in record.attempts] == [1, 2]
        assert record.attempt.state is State.QUEUED
    else:
        world.registry.request_ended(record, LOST)
    by_router = ACCOUNTING[state].publisher is Publisher.ROUTER
    assert by_router == (ACCOUNTING[state].fallback is Fallback.TICKET)
    assert world.published() == (["r1"] if by_router else [])
    world.registry.worker_gone("w")
    world.registry.unexpected_offer("r1.1")
    assert world.published() == ([] if by_router else ["r1"])


@pytest.mark.parametrize("sign", ["its ticket comes back", "another run of it breaks off", "its entry expires"])
@pytest.mark.parametrize("state", [state for state in State if ACCOUNTING[state].fallback is Fallback.MEMORY])
def test_each_sign_of_a_dead_worker(state: State, sign: str) -> None:
    world = World()
    world.registry.request_ended(record_in(state), None if state is State.COMPLETE else LOST)
    if sign == "its ticket comes back":
        world.registry.unexpected_offer("r1.1")
    elif sign == "its entry expires":
        world.registry.worker_gone("w")
    else:
        world.registry.worker_broke_off("w")
    (event,) = world.outbox.events
    expected = billing.ATTEMPT_STATUS_COMPLETED if state is State.COMPLETE else billing.ATTEMPT_STATUS_WORKER_LOST
    assert (event.request_id, event.attempt, event.last, event.status) == ("r1", 1, True, expected)


@pytest.mark.parametrize("state", list(State))
def test_nothing_is_published_or_remembered_without_a_reservation(state: State) -> None:
    world = World()
    record = record_in(state, reservation="")
    world.registry.attempt_ended(record, LOST)
    world.registry.request_ended(record, None)
    world.registry.worker_gone("w")
    assert world.published() == []


@pytest.mark.parametrize("delivery", [Delivery.WHOLE, Delivery.ONCE])
@pytest.mark.parametrize("becomes_whole", [True, False])
def test_the_lost_part_of_an_answer_that_is_not_streamed_waits_for_its_end(
    delivery: Delivery, becomes_whole: bool
) -> None:
    world = World()
    record = record_in(State.LOST)
    record.delivery = delivery
    record.attempt.delivered_tokens = 3
    world.registry.attempt_ended(record, LOST)
    assert world.published() == []
    record.attempts[-1] = attempt_in(State.COMPLETE if becomes_whole else State.LOST, 2)
    record.attempt.delivered_tokens = 2
    world.registry.request_ended(record, None if becomes_whole else LOST)
    counted = [(event.attempt, event.last, event.usage.output_tokens) for event in world.outbox.events]
    assert counted == ([(1, False, 3)] if becomes_whole else [(1, False, 0), (2, True, 0)])


def test_a_model_that_does_not_exist_fills_no_sums() -> None:
    world = World()
    record = Record(Identity("acme", "key1", "res1", "invented", "gold", None, None, "r1"), CHAT)
    world.registry.request_ended(record, Reason.MODEL_NOT_FOUND)
    assert [event.model for event in world.outbox.events] == [""]


def test_an_attempt_whose_ticket_comes_back_is_told_once() -> None:
    world = World()
    world.ended("a")
    world.ended("b")
    world.registry.unexpected_offer("a.1")
    world.registry.unexpected_offer("a.1")
    world.registry.unexpected_offer("unknown.1")
    assert world.published() == ["a"]


def test_what_a_worker_had_just_ended_is_told_when_it_breaks_off() -> None:
    world = World()
    world.ended("old")
    world.now += 6
    world.ended("other", "another")
    world.ended("new")
    world.registry.worker_broke_off("w")
    world.registry.worker_broke_off("w")
    assert world.published() == ["new"]
    world.ended("late")  # its reader was slow: the router saw its end only now
    assert world.published() == ["late"]
    world.now += 6
    world.ended("back again")
    assert world.published() == []


def test_a_worker_that_offers_again_publishes_its_own_events() -> None:
    world = World()
    world.registry.worker_broke_off("w")
    world.registry.attempt_offered(record_in(State.OFFERED))
    world.ended("a")
    assert world.published() == []


def test_a_worker_that_vanished_may_have_died_as_long_ago_as_its_entry_lives() -> None:
    world = World()
    world.ended("older")
    world.now += 5
    world.ended("old")
    world.now += 12
    world.registry.worker_gone("w")
    assert world.published() == ["old"]


def test_what_is_remembered_is_bounded_by_number_and_age() -> None:
    world = World(capacity=2)
    for name in "abc":
        world.ended(name)
    for name in "abc":
        world.registry.unexpected_offer(f"{name}.1")
    assert world.published() == ["b", "c"]
    world.ended("d")
    world.now += 91
    world.ended("e")
    world.registry.unexpected_offer("d.1")
    assert world.published() == []
