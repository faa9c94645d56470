"""What waits for a slow reader is merged and bounded."""

import asyncio

from uplion.inference.v1.sampling_pb2 import FINISH_REASON_STOP, FINISH_REASON_UNSPECIFIED, TokenUsage

from common.deltas import Delta
from common.errors import Reason, UplionError
from router.dispatch.runs import AnswerEvent
from router.surfaces.response_buffers import StreamBuffer

OPEN = FINISH_REASON_UNSPECIFIED


def said(text: str, index: int = 0, finish: bool = False) -> AnswerEvent:
    reason = FINISH_REASON_STOP if finish else OPEN
    return AnswerEvent([Delta(index, [text], [], reason)])


async def test_deltas_of_a_choice_are_merged() -> None:
    buffer = StreamBuffer(2, 1000)
    for event in (said("a"), said("b"), said("x", 1), said("c", finish=True)):
        buffer.put(event)
    await buffer.wait()
    assert buffer.take() == [Delta(0, ["abc"], [], FINISH_REASON_STOP), Delta(1, ["x"], [], OPEN)]
    assert buffer.take() == []


async def test_a_choice_that_was_not_asked_for_is_dropped() -> None:
    buffer = StreamBuffer(1, 1000)
    buffer.put(said("x", 7))
    assert buffer.take() == []


async def test_the_engine_is_held_back_beyond_the_limit() -> None:
    buffer = StreamBuffer(1, 10)
    buffer.put(said("x" * 11))
    assert buffer.is_full
    waiting = asyncio.create_task(buffer.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    buffer.take()
    await asyncio.wait_for(waiting, 60)
    assert not buffer.is_full


async def test_the_reader_sleeps_until_something_comes() -> None:
    buffer = StreamBuffer(1, 10)
    waiting = asyncio.create_task(buffer.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    buffer.put(said("x"))
    await asyncio.wait_for(waiting, 60)


async def test_the_end_wakes_the_reader_with_usage_or_error() -> None:
    buffer = StreamBuffer(1, 10)
    buffer.put(AnswerEvent(usage=TokenUsage(output_tokens=3)))
    error = UplionError(Reason.WORKER_LOST, "gone")
    buffer.end(error)
    await buffer.wait()
    assert buffer.ended
    assert buffer.error is error
    assert buffer.usage is not None
    assert buffer.usage.output_tokens == 3
