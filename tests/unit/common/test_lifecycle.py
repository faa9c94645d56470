"""Tasks that run for as long as their service, and loops that end although a cancellation was swallowed."""

import asyncio
from contextlib import suppress
from functools import partial

import pytest

from common import lifecycle
from common.lifecycle import Backoff, forever, not_cancelled, run_forever, sleep_unless_cancelled
from common.metrics import TASK_RESTARTS
from tests.kit.until import until


def restarts(task: str) -> float:
    value: float = TASK_RESTARTS.labels(task)._value.get()
    return value


async def test_a_task_that_fails_is_started_again_alone(caplog) -> None:
    starts, others = [0], [0]
    again = asyncio.Event()

    async def fails_twice() -> None:
        starts[0] += 1
        if starts[0] == 3:
            again.set()
            await asyncio.sleep(60)
        raise ValueError("it broke")

    async def waits() -> None:
        others[0] += 1
        await asyncio.sleep(60)

    before = restarts("fails twice")
    async with forever({"fails twice": fails_twice, "waits": waits}):
        await until(again)
        assert others == [1]  # and its neighbour did not notice
        assert restarts("fails twice") - before == 2
        assert lifecycle.troubles()["fails twice"] == "ValueError: it broke"
    assert caplog.text.count("it broke") >= 2


async def test_a_task_that_returns_has_failed() -> None:
    starts = [0]
    again = asyncio.Event()

    async def returns() -> None:
        starts[0] += 1
        if starts[0] == 2:
            again.set()

    async with forever({"send usage": returns}):
        await until(again)
        assert "'send usage' returned" in lifecycle.troubles()["send usage"]


async def test_a_part_of_several_tasks_restarts_only_the_one_that_failed() -> None:
    starts, others = [0], [0]
    again = asyncio.Event()

    async def fails() -> None:
        starts[0] += 1
        if starts[0] > 1:
            again.set()
            await asyncio.sleep(60)
        raise OSError("a disk")

    async def waits() -> None:
        others[0] += 1
        await asyncio.sleep(60)

    async with forever({"part": partial(run_forever, {"watch": fails, "other": waits})}):
        await until(again)
    assert others == [1]


async def test_what_fails_while_it_is_cancelled_does_not_keep_the_block() -> None:
    begun = asyncio.Event()

    async def fails_in_its_end() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError("cannot unsubscribe")

    async with asyncio.timeout(30):
        async with forever({"fails": fails_in_its_end}):
            await begun.wait()


async def test_a_failure_of_the_block_itself_is_raised_and_ends_its_tasks() -> None:
    ended = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def part() -> None:
        async with forever({"waits": waits}):
            await asyncio.sleep(0)
            raise RuntimeError("the part itself")

    with pytest.raises(ExceptionGroup):
        await part()
    assert ended.is_set()


def test_pauses_double_with_jitter_are_bounded_and_forgiven_by_health() -> None:
    backoff = Backoff(first_seconds=0.1, most_seconds=1.0, healthy_seconds=30.0)
    pauses = [backoff.after(0.0) for _ in range(8)]
    for pause, most in zip(pauses, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0], strict=True):
        assert most / 2 <= pause <= most
    assert backoff.after(31.0) <= 0.1
    assert backoff.after(0.0) <= 0.2


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
