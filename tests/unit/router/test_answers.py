"""What waits for a slow reader is merged and bounded."""

import asyncio

from uplion.dispatch.v1 import run_pb2
from uplion.dispatch.v1.run_pb2 import RunEvent
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_STOP, FINISH_REASON_UNSPECIFIED, TokenUsage

from common.deltas import Delta
from common.errors import Reason, UplionError
from router.answers import Unwritten

OPEN = FINISH_REASON_UNSPECIFIED


def said(text: str, index: int = 0, finish: bool = False) -> RunEvent:
    reason = FINISH_REASON_STOP if finish else OPEN
    return RunEvent(deltas=[run_pb2.Delta(index=index, parts=[run_pb2.Part(text=text)], finish_reason=reason)])


async def test_deltas_of_a_choice_are_merged() -> None:
    unwritten = Unwritten(2, 1000)
    for event in (said("a"), said("b"), said("x", 1), said("c", finish=True)):
        unwritten.put(event)
    await unwritten.wait()
    assert unwritten.take() == [Delta(0, ["abc"], [], FINISH_REASON_STOP), Delta(1, ["x"], [], OPEN)]
    assert unwritten.take() == []


async def test_a_choice_that_was_not_asked_for_is_dropped() -> None:
    unwritten = Unwritten(1, 1000)
    unwritten.put(said("x", 7))
    assert unwritten.take() == []


async def test_the_engine_is_held_back_beyond_the_limit() -> None:
    unwritten = Unwritten(1, 10)
    unwritten.put(said("x" * 11))
    assert unwritten.is_full
    waiting = asyncio.create_task(unwritten.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    unwritten.take()
    await asyncio.wait_for(waiting, 60)
    assert not unwritten.is_full


async def test_the_reader_sleeps_until_something_comes() -> None:
    unwritten = Unwritten(1, 10)
    waiting = asyncio.create_task(unwritten.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    unwritten.put(said("x"))
    await asyncio.wait_for(waiting, 60)


async def test_the_end_wakes_the_reader_with_usage_or_error() -> None:
    unwritten = Unwritten(1, 10)
    unwritten.put(RunEvent(usage=TokenUsage(output_tokens=3)))
    error = UplionError(Reason.WORKER_LOST, "gone")
    unwritten.end(error)
    await unwritten.wait()
    assert unwritten.ended
    assert unwritten.error is error
    assert unwritten.usage is not None
    assert unwritten.usage.output_tokens == 3
