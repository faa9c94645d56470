"""Waiting says what it waited for."""

import asyncio
import threading

import pytest

from tests.kit.until import until, until_sync


async def test_the_first_true_value_is_returned_of_plain_and_async_conditions() -> None:
    values = iter([0, "", [], "found"])
    assert await until(lambda: next(values)) == "found"

    async def condition() -> int:
        return 7

    assert await until(condition) == 7
    assert until_sync(lambda: 7) == 7


async def test_an_event_is_waited_for() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await until(event)
    other = threading.Event()
    threading.Timer(0.01, other.set).start()
    assert await asyncio.to_thread(until_sync, other)


async def test_an_ignored_exception_is_not_yet_and_another_ends_the_wait() -> None:
    tries = iter([KeyError("early"), KeyError("early")])

    def condition() -> bool:
        for problem in tries:
            raise problem
        return True

    assert await until(condition, ignoring=(KeyError,))
    with pytest.raises(ZeroDivisionError):
        await until(lambda: 1 / 0, ignoring=(KeyError,))


async def test_a_failure_shows_the_condition_and_what_it_last_gave() -> None:
    rows: list[str] = []
    with pytest.raises(AssertionError, match=r"last \[\](.|\n)*lambda: rows"):
        await until(lambda: rows, 0.05)
    with pytest.raises(AssertionError, match=r"last \[\](.|\n)*lambda: rows"):
        until_sync(lambda: rows, 0.05)
    nothing: dict[str, int] = {}
    with pytest.raises(AssertionError, match="early"):
        until_sync(lambda: nothing["early"], 0.05, ignoring=(KeyError,))


async def test_a_condition_that_hangs_is_bounded_and_its_own_timeout_is_not_ours() -> None:
    with pytest.raises(AssertionError, match=r"not within 0.05 s"):
        await until(lambda: asyncio.sleep(60), 0.05)

    async def late() -> None:
        raise TimeoutError("of the condition")

    with pytest.raises(TimeoutError, match="of the condition"):
        await until(late)
