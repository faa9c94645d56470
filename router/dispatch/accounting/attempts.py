"""An attempt to answer a request on one worker: its states, and who accounts for it.

Every attempt of a request with a reservation ends in a usage event, published by the router or by the worker. Which of
them does follows from the state in which the attempt ended; `ACCOUNTING` is the one place that says so (ADR 8).
Where both publish, the ledger keeps the first: an event's key is request id and attempt number.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from uplion.inference.v1.sampling_pb2 import TokenUsage

from common.errors import Reason


class State(Enum):
    """Where an attempt is."""

    QUEUED = "queued"  # no worker has it: its ticket waits in the queue, or is not published
    OFFERED = "offered"  # an offer was accepted and its run is being opened; the worker has not answered yet
    RUNNING = "running"  # the worker has answered, or will answer once, at its end
    COMPLETE = "complete"  # the worker's last event has come, with what the attempt counts
    LOST = "lost"  # the worker vanished, fell silent or did not take the run
    REFUSED = "refused"  # the worker ended it with an error of its own


_NEXT: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.QUEUED: frozenset({State.OFFERED}),
        State.OFFERED: frozenset({State.RUNNING, State.LOST, State.REFUSED}),
        State.RUNNING: frozenset({State.COMPLETE, State.LOST, State.REFUSED}),
        State.COMPLETE: frozenset(),
        State.LOST: frozenset(),
        State.REFUSED: frozenset(),
    }
)


class Publisher(Enum):
    """Who publishes an attempt's usage event."""

    ROUTER = "router"
    WORKER = "worker"


class Fallback(Enum):
    """What happens when the publisher dies before its event is safe."""

    # The ticket is not acknowledged, so it comes to a worker (again). That worker's offer finds no router, and it
    # publishes CANCELLED. A worker on which the run was open publishes CANCELLED as soon as the stream breaks. An
    # attempt whose ticket was never published has no event: its reservation expires.
    TICKET = "ticket"
    # The router remembers the attempt for 90 s. It publishes when another run of that worker breaks off, when the
    # worker's entry in KV expires, or when the ticket comes back. While the router still reads the run, the attempt
    # becomes LOST instead.
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Accounting:
    """Who accounts for an attempt that ended in a state."""

    publisher: Publisher
    fallback: Fallback


# An attempt ends in QUEUED, OFFERED or RUNNING when the request ends there: its client left, its time ran out, or the
# router refused it.
ACCOUNTING: Mapping[State, Accounting] = MappingProxyType(
    {
        State.QUEUED: Accounting(Publisher.ROUTER, Fallback.TICKET),
        State.OFFERED: Accounting(Publisher.ROUTER, Fallback.TICKET),  # a run that is cancelled now may not arrive
        State.RUNNING: Accounting(Publisher.WORKER, Fallback.MEMORY),
        State.COMPLETE: Accounting(Publisher.WORKER, Fallback.MEMORY),
        State.LOST: Accounting(Publisher.ROUTER, Fallback.TICKET),
        State.REFUSED: Accounting(Publisher.WORKER, Fallback.MEMORY),
    }
)


class Attempt:
    """One attempt. The dispatcher moves it from state to state; at its end the registry publishes or remembers it.

    Times are monotonic seconds, except for the ticket's.
    """

    __slots__ = (
        "delivered_tokens",
        "ended_at",
        "number",
        "offered_at",
        "published_at",
        "reason",
        "receipt_subject",
        "state",
        "ticket_time_ns",
        "usage",
        "worker_id",
    )

    def __init__(self, number: int) -> None:
        self.number = number  # from 1
        self.state = State.QUEUED
        self.published_at: float | None = None  # None: it has no ticket yet
        self.ticket_time_ns: int | None = None  # unix; equal in every event of the attempt
        self.offered_at: float | None = None
        self.worker_id = ""
        self.receipt_subject = ""  # empty: the worker wants no receipt
        self.delivered_tokens = 0
        self.usage: TokenUsage | None = None  # as the worker counted it; set in COMPLETE
        self.ended_at: float | None = None
        self.reason: Reason | None = None  # why it failed, where another attempt follows

    @property
    def queue_seconds(self) -> float | None:
        """From the ticket to the offer; None: there was none."""
        if self.offered_at is None or self.published_at is None:
            return None
        return self.offered_at - self.published_at

    @property
    def accounting(self) -> Accounting:
        """Who publishes its usage event if it ends now."""
        return ACCOUNTING[self.state]

    def queued(self, ticket_time_ns: int) -> None:
        """Its ticket is being published."""
        assert self.state is State.QUEUED
        self.published_at = time.monotonic()
        self.ticket_time_ns = ticket_time_ns

    def offered(self, worker_id: str, receipt_subject: str = "") -> None:
        """An offer was accepted."""
        self._enter(State.OFFERED)
        self.offered_at = time.monotonic()
        self.worker_id = worker_id
        self.receipt_subject = receipt_subject

    def answered(self) -> None:
        """The worker has sent an event, or was asked for one only; may be called again."""
        if self.state is not State.RUNNING:
            self._enter(State.RUNNING)

    def completed(self, usage: TokenUsage) -> None:
        """The last event has come."""
        self._enter(State.COMPLETE)
        self.usage = usage

    def lost(self) -> None:
        """The worker cannot account for it any more, or never could."""
        self._enter(State.LOST)

    def refused(self) -> None:
        """The worker ended it with an error."""
        self._enter(State.REFUSED)

    def _enter(self, state: State) -> None:
        assert state in _NEXT[self.state], f"an attempt cannot become {state.value} while it is {self.state.value}"
        self.state = state
