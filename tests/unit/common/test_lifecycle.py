"""Tasks that run for as long as their service, and loops that end although a cancellation was swallowed."""

import asyncio
from contextlib import suppress

import pytest

from common.lifecycle import forever, not_cancelled, run_forever, sleep_unless_cancelled


async def test_a_task_that_returns_ends_the_block_with_an_error_that_names_it() -> None:
    async def returns() -> None:
        await asyncio.sleep(0)

    async def waits() -> None:
        await asyncio.sleep(60)

    with pytest.raises(ExceptionGroup) as caught:
        async with forever({"send usage": returns, "other": waits}):
            await asyncio.sleep(60)
    assert "'send usage' returned" in str(caught.value.exceptions[0])


async def test_a_part_of_several_tasks_does_not_outlive_one_that_returns() -> None:
    async def returns() -> None:
        await asyncio.sleep(0)

    async def waits() -> None:
        await asyncio.sleep(60)

    with pytest.raises(ExceptionGroup) as caught:
        await run_forever({"watch": returns, "other": waits})
    assert "'watch' returned" in str(caught.value.exceptions[0])


async def test_a_task_that_fails_ends_the_block_and_the_others() -> None:
    cancelled = asyncio.Event()

    async def fails() -> None:
        raise ValueError("it broke")

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(ExceptionGroup) as caught:
        async with forever({"waits": waits, "fails": fails}):
            await asyncio.sleep(60)
    assert [str(problem) for problem in caught.value.exceptions] == ["it broke"]
    assert cancelled.is_set()


async def test_leaving_the_block_cancels_its_tasks_and_waits_for_them() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.set()

    async with forever({"waits": waits}):
        await begun.wait()
    assert ended.is_set()


async def test_leaving_the_block_at_once_starts_no_task() -> None:
    async def begins() -> None:
        raise AssertionError("it must not begin")

    async with forever({"begins": begins}):
        pass


async def test_a_task_that_swallows_its_cancellation_is_no_error_once_the_block_is_left() -> None:
    begun = asyncio.Event()

    async def swallows() -> None:
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    async with forever({"swallows": swallows}):
        await begun.wait()


async def test_a_swallowed_cancellation_ends_the_loop_at_its_head() -> None:
    rounds = 0
    begun = asyncio.Event()

    async def loop() -> None:
        nonlocal rounds
        while not_cancelled():
            rounds += 1
            begun.set()
            with suppress(asyncio.CancelledError):  # as asyncio.wait_for of Python 3.11 does in a race
                await asyncio.sleep(60)

    task = asyncio.create_task(loop())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rounds == 1


async def test_a_swallowed_cancellation_lets_no_loop_rest() -> None:
    begun = asyncio.Event()

    async def loop() -> None:
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await sleep_unless_cancelled(60)

    task = asyncio.create_task(loop())
    await begun.wait()
    task.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait({task})
    assert task.cancelled()


async def test_a_deadline_that_passed_before_is_no_cancellation() -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.sleep(60)
    assert not_cancelled()
