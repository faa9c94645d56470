"""A request's way out of the engine."""

import asyncio

import pytest
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_LENGTH

from common.deltas import Delta
from common.errors import Reason, UplionError
from common.sampling import Sampling
from inference.engines.engine import output_limit
from inference.engines.output import Output


async def test_what_the_reader_has_not_taken_is_merged_and_all_is_counted():
    output = Output()
    output.begin(5)
    output.add(Delta(0, ["a"], [1]))
    output.add(Delta(1, ["x"], [7, 8]))
    output.add(Delta(0, ["b"], [2], FINISH_REASON_LENGTH))
    assert await output.take() == [Delta(0, ["ab"], [1, 2], FINISH_REASON_LENGTH), Delta(1, ["x"], [7, 8])]
    assert (output.output_tokens, output.finish_reason) == (4, FINISH_REASON_LENGTH)
    assert not output.drained
    output.end()
    assert await output.take() == []
    assert output.drained


async def test_a_waiting_reader_wakes_once_for_a_step():
    output = Output()
    reading = asyncio.ensure_future(output.take())
    await asyncio.sleep(0)
    output.add(Delta(0, ["a"], [1]))
    output.add(Delta(0, ["b"], [2]))
    output.end()
    assert [delta.text for delta in await reading] == ["ab"]


async def test_a_failure_comes_after_what_was_made_and_only_once_ended():
    output = Output()
    output.add(Delta(0, ["a"], [1]))
    output.fail(UplionError(Reason.INTERNAL, "broken"))
    assert [delta.text for delta in await output.take()] == ["a"]
    with pytest.raises(UplionError, match="broken"):
        await output.take()
    assert not output.drained
    done = Output()
    done.end()
    done.fail(RuntimeError("too late"))
    assert done.drained


def test_the_answer_fits_into_what_the_prompt_leaves():
    assert output_limit(Sampling(), 90, 100) == 10
    assert output_limit(Sampling(max_output_tokens=3), 90, 100) == 3
    assert output_limit(Sampling(max_output_tokens=30), 90, 100) == 10
    with pytest.raises(UplionError) as caught:
        output_limit(Sampling(), 100, 100)
    assert caught.value.reason is Reason.CONTEXT_LENGTH_EXCEEDED
