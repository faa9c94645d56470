"""Loops that end although a cancellation was swallowed."""

import asyncio
from contextlib import suppress

import pytest

from common.tasks import not_cancelled, sleep_unless_cancelled


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
