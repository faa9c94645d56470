"""Compute seconds of each request, for the ledger: what runs on a device at once shares its time.

Together they are never more than the time that passed.
"""

import threading
import time
from dataclasses import dataclass

from inference.engines.output import Output


@dataclass(slots=True, eq=False)
class Span:
    """One piece of work on the device, from `ComputeClock.start` until `stop`."""

    seconds: float = 0.0


class ComputeClock:
    """Divides the time of one device evenly among the spans that are open at each moment. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[Span] = set()
        self._moved_seconds = 0.0

    def start(self) -> Span:
        span = Span()
        with self._lock:
            self._move()
            self._open.add(span)
        return span

    def stop(self, span: Span) -> float:
        """Its share in seconds."""
        with self._lock:
            self._move()
            self._open.discard(span)
        return span.seconds

    def _move(self) -> None:
        now_seconds = time.perf_counter()
        if self._open:
            share = (now_seconds - self._moved_seconds) / len(self._open)
            for span in self._open:
                span.seconds += share
        self._moved_seconds = now_seconds


class StepClock:
    """Divides each step of the engine among the requests in it, by the tokens computed for each.

    Used by the engine's thread alone. A step without outputs (part of a long prompt) ends where the next one begins,
    which is at once as long as one of its requests is wanted.
    """

    def __init__(self, clock: ComputeClock) -> None:
        self._clock = clock
        self._span: Span | None = None
        self._shares: list[tuple[Output, int]] = []

    def begin(self, shares: list[tuple[Output, int]]) -> None:
        """A step with so many tokens of each request."""
        self.end()
        self._shares = shares
        self._span = self._clock.start()

    def end(self) -> None:
        """The step is over. Idempotent."""
        if self._span is None:
            return
        seconds = self._clock.stop(self._span)
        self._span = None
        tokens = sum(count for _, count in self._shares)
        for output, count in self._shares:
            output.compute_seconds = (output.compute_seconds or 0.0) + seconds * count / tokens
