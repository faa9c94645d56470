"""A boundary: what fails inside is counted and logged, and ends nothing outside."""

import logging
import time
from types import TracebackType
from typing import Protocol

_LOG_EVERY_SECONDS = 60.0


class Counts(Protocol):
    """A counter."""

    def inc(self) -> None:
        """One more."""


class Boundary:
    """`with boundary:` for what other parties' input may break: one message, one report.

    An exception ends the block and goes no further; a cancellation does. One boundary serves any number of blocks, also
    at the same time. The first failure is logged whole, and then one a minute with the number of those in between.
    """

    __slots__ = ("_counter", "_event", "_logged_at", "_logger", "_silent")

    def __init__(self, event: str, logger: logging.Logger, counter: Counts) -> None:
        """`event` is the text of the log line."""
        self._event, self._logger, self._counter = event, logger, counter
        self._logged_at = -_LOG_EVERY_SECONDS
        self._silent = 0

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if problem is None:
            return False
        if not isinstance(problem, Exception):
            return False
        self.failed(problem)
        return True

    def failed(self, problem: Exception) -> None:
        """Counts and logs a failure that was met elsewhere."""
        self._counter.inc()
        now = time.monotonic()
        if now - self._logged_at < _LOG_EVERY_SECONDS:
            self._silent += 1
            return
        self._logger.error(self._event, exc_info=problem, extra={"not_logged": self._silent})
        self._logged_at, self._silent = now, 0
