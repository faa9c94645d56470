"""Waiting until a condition holds, with a bound; a wait that fails shows its condition and what it last gave."""

import asyncio
import inspect
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any

_EVERY_SECONDS = 0.01


async def until(
    condition: asyncio.Event | Callable[[], Any],
    seconds: float = 60.0,
    *,
    ignoring: tuple[type[Exception], ...] = (),
) -> Any:
    """Waits for an event, or until the condition (plain or async) gives something true, and returns that.

    An exception of `ignoring` counts as "not yet". Raises AssertionError after `seconds`.
    """
    last: object = None
    try:
        async with asyncio.timeout(seconds) as limit:
            if isinstance(condition, asyncio.Event):
                return await condition.wait()
            while True:
                try:
                    value = condition()
                    last = value = await value if inspect.isawaitable(value) else value
                    if value:
                        return value
                except ignoring as problem:
                    last = problem
                await asyncio.sleep(_EVERY_SECONDS)
    except TimeoutError as late:
        if not limit.expired():
            raise
        raise AssertionError(_failure(condition, seconds, last)) from late


def until_sync(
    condition: threading.Event | Callable[[], Any],
    seconds: float = 60.0,
    *,
    ignoring: tuple[type[Exception], ...] = (),
) -> Any:
    """As `until`, for a test without an event loop."""
    if isinstance(condition, threading.Event):
        assert condition.wait(seconds), _failure(condition, seconds, None)
        return True
    deadline = time.monotonic() + seconds
    last: object = None
    while True:
        try:
            if last := condition():
                return last
        except ignoring as problem:
            last = problem
        assert time.monotonic() < deadline, _failure(condition, seconds, last)
        time.sleep(_EVERY_SECONDS)


def _failure(condition: object, seconds: float, last: object) -> str:
    return f"not within {seconds:g} s; last {last!r}:\n{_source(condition)}"


def _source(condition: object) -> str:
    """The condition's own source, for a lambda the statement that it stands in."""
    try:
        return textwrap.dedent(inspect.getsource(condition)).strip()  # type: ignore[arg-type]
    except (OSError, TypeError):
        return repr(condition)
