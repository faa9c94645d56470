"""The seam between a worker and the queues that its tickets come from.

A source hands out deliveries as far as it was given credit; each delivery wants one final answer: `acknowledge`,
`give_back` or `dead_letter`. A delivery knows its own queue, so that one source may stand for several of them.
"""

from collections.abc import Callable, Sequence
from typing import Protocol


class SourceUnavailableError(Exception):
    """The queue cannot be reached now. A delivery without an answer is delivered again after the queue's own time."""


class Delivery(Protocol):
    """One ticket as a queue delivered it."""

    @property
    def payload(self) -> bytes:
        """The ticket, serialised."""

    @property
    def traceparent(self) -> str:
        """The W3C trace context that it was published with; empty when there was none."""

    @property
    def delivery_count(self) -> int:
        """How often it has been delivered, to any worker; 1 is the first time."""

    async def in_progress(self) -> None:
        """Starts the queue's redelivery timer anew. Raises SourceUnavailableError."""

    def acknowledge(self, on_end: Callable[[], None]) -> None:
        """Removes it from the queue; never waits and never raises, and is repeated while it stays unconfirmed.

        `on_end` is called once: when the queue has confirmed it, or when the repetitions are used up. In the latter
        case the ticket may be delivered again.
        """

    async def give_back(self, delay_seconds: float = 0.0) -> None:
        """Lets the queue deliver it again, to any worker, after the delay. Raises SourceUnavailableError."""

    async def dead_letter(self, problem: str) -> None:
        """Moves it to the dead-letter stream, with the reason. Raises SourceUnavailableError."""


class TicketSource(Protocol):
    """A queue, or several, that deliver tickets on credit."""

    async def want(self, count: int) -> None:
        """Sets the credit: `count` deliveries may be on their way or waiting here; 0 asks for no more."""

    async def next(self, timeout_seconds: float) -> Delivery | None:
        """The next delivery, or None when none arrives in time."""

    async def finish(self) -> Sequence[Delivery]:
        """Ends the credit for good; returns what has arrived and was not taken."""
