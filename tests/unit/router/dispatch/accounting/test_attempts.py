"""An attempt goes forward only, and every state says who accounts for it."""

import itertools
import re
from pathlib import Path

import pytest
from uplion.inference.v1.sampling_pb2 import TokenUsage

from router.dispatch.accounting.attempts import ACCOUNTING, Attempt, Fallback, State

FORWARD = {
    (State.QUEUED, State.OFFERED),
    (State.OFFERED, State.RUNNING),
    (State.OFFERED, State.LOST),
    (State.OFFERED, State.REFUSED),
    (State.RUNNING, State.RUNNING),
    (State.RUNNING, State.COMPLETE),
    (State.RUNNING, State.LOST),
    (State.RUNNING, State.REFUSED),
}


def attempt_in(state: State, number: int = 1, worker_id: str = "w") -> Attempt:
    """An attempt that came to the state as the dispatcher brings it there."""
    attempt = Attempt(number)
    attempt.queued(5_000_000_000)
    if state is State.QUEUED:
        return attempt
    attempt.offered(worker_id)
    if state in (State.RUNNING, State.COMPLETE):
        attempt.answered()
    return enter(attempt, state) if state in (State.COMPLETE, State.LOST, State.REFUSED) else attempt


def enter(attempt: Attempt, state: State) -> Attempt:
    if state is State.QUEUED:
        attempt.queued(1)
    elif state is State.OFFERED:
        attempt.offered("w")
    elif state is State.RUNNING:
        attempt.answered()
    elif state is State.COMPLETE:
        attempt.completed(TokenUsage())
    elif state is State.LOST:
        attempt.lost()
    else:
        attempt.refused()
    return attempt


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_a_state_is_only_entered_from_where_it_can_follow(before: State, after: State) -> None:
    attempt = attempt_in(before)
    assert attempt.state is before
    if (before, after) in FORWARD or (before, after) == (State.QUEUED, State.QUEUED):
        assert enter(attempt, after).state is after
    else:
        with pytest.raises(AssertionError):
            enter(attempt, after)
        assert attempt.state is before


def test_every_state_is_accounted_for() -> None:
    assert set(ACCOUNTING) == set(State)
    for state in State:
        assert attempt_in(state).accounting is ACCOUNTING[state]


def test_the_documentation_has_the_same_table() -> None:
    page = (Path(__file__).parents[5] / "docs/data-path.md").read_text()
    rows = re.findall(r"^\| `([A-Z]+)`: .*? \| (router|worker) \| (.*) \|$", page, re.MULTILINE)
    assert [State[name] for name, _, _ in rows] == list(State)
    for name, publisher, fallback in rows:
        accounting = ACCOUNTING[State[name]]
        assert publisher == accounting.publisher.value
        assert ("memory" in fallback) == (accounting.fallback is Fallback.MEMORY)


def test_an_attempt_knows_its_times_as_far_as_it_came() -> None:
    assert Attempt(1).queue_seconds is None
    assert attempt_in(State.QUEUED).queue_seconds is None
    offered = attempt_in(State.OFFERED)
    assert offered.queue_seconds is not None
    assert offered.queue_seconds >= 0
    assert (offered.ticket_time_ns, offered.worker_id) == (5_000_000_000, "w")
