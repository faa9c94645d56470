"""A worker is lost: what the client sees, what goes on elsewhere, and what of it is billed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from google.api.httpbody_pb2 import HttpBody
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.dispatch.v1 import run_pb2
from uplion.dispatch.v1.worker_state_pb2 import CAPABILITY_CHAT

from tests.integration.router.dispatch.scripts import (
    chat,
    code,
    dies_after_two_tokens,
    done,
    forever,
    one,
    silent,
    text,
    vanish_at_once,
)
from tests.kit.until import until


async def test_a_worker_lost_before_its_first_token_is_replaced_unseen(start_world: Any) -> None:
    async def once(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        if request.ticket.attempt == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        yield one("fine", 1, finish=True)
        yield done(1)

    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=once)
        status, _, data, _ = await world.client.post("CreateChatCompletion", chat(world.model))
        assert status == 200
        assert json.loads(data)["choices"][0]["message"]["content"] == "fine"
        assert [run.ticket.attempt for run in worker.runs] == [1, 2]
        assert not worker.runs[1].resume
        await until(lambda: len(world.usage) == 2)
        lost = next(event for event in world.usage if event.attempt == 1)
        assert (lost.status, lost.last) == (billing.ATTEMPT_STATUS_WORKER_LOST, False)
        assert not lost.usage.output_tokens


async def test_a_killed_worker_process_is_a_lost_worker(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        first = await world.start_worker(script=silent)
        asking = asyncio.create_task(world.client.post("CreateChatCompletion", chat(world.model)))
        await until(lambda: first.runs)
        await first.kill()
        await world.start_worker()
        status, *_ = await asking
        assert status == 200


async def test_a_stream_goes_on_where_the_lost_worker_stopped(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=dies_after_two_tokens())
        body = chat(world.model, stream=True, stream_options={"include_usage": True})
        _, _, data, _ = await world.client.post("CreateChatCompletion", body)
        assert text(data) == "Hello there again"
        assert data.count(b'"role"') == 1
        assert data.endswith(b"data: [DONE]\n\n")
        assert [list(array.ids) for array in worker.runs[1].resume] == [[11, 12]]
        first, second = worker.runs
        assert (first.chat, first.sampling) == (second.chat, second.sampling)
        assert not first.resume
        usage = json.loads(data.decode().split("\n\n")[-3][6:])["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7, 3)
        await until(lambda: len(world.usage) == 2)
        billed = sum(event.usage.output_tokens for event in world.usage)
        assert billed == 3
        assert sum(event.usage.input_tokens for event in world.usage) == 7
        assert {event.attempt for event in world.usage if event.last} == {2}


@pytest.mark.parametrize("case", ["no ids", "no capability"])
async def test_a_stream_that_cannot_go_on_ends_with_an_error_frame(start_world: Any, case: str) -> None:
    async with start_world(worker=False) as world:
        capabilities = (CAPABILITY_CHAT,) if case == "no capability" else (1, 2, 3, 4)
        worker = await world.start_worker(script=dies_after_two_tokens(ids=case != "no ids"), capabilities=capabilities)
        _, _, data, _ = await world.client.post("CreateChatCompletion", chat(world.model, stream=True))
        *_, error, end, empty = data.decode().split("\n\n")
        assert json.loads(error[6:])["error"]["code"] == "worker_lost"
        assert (end, empty) == ("data: [DONE]", "")
        assert len(worker.runs) == 1
        event = await world.one_usage()
        assert (event.status, event.last) == (billing.ATTEMPT_STATUS_WORKER_LOST, True)
        assert event.usage.input_tokens == 7
        assert event.usage.output_tokens in (1, 2)


async def test_a_worker_lost_after_the_last_token_changes_nothing_for_the_client(start_world: Any) -> None:
    async def no_usage(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        yield one("all of it", 1, finish=True)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    async with start_world(worker=False) as world:
        await world.start_worker(script=no_usage)
        status, _, data, _ = await world.client.post(
            "CreateChatCompletion", chat(world.model, max_tokens=1000), max_output_tokens=None
        )
        body = json.loads(data)
        assert (status, body["choices"][0]["message"]["content"]) == (200, "all of it")
        assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (7, 1)
        event = await world.one_usage()
        assert (event.status, event.last) == (billing.ATTEMPT_STATUS_COMPLETED, True)
        assert (event.usage.input_tokens, event.usage.output_tokens) == (7, 1)


async def test_a_short_answer_is_asked_for_in_one_event_and_begins_anew_elsewhere(start_world: Any) -> None:
    async def script(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        yield one("Hello", 11)
        if request.ticket.attempt == 1 and request.once:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        yield one(" there", 12, finish=True)
        yield done(2)

    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=script)
        status, _, data, _ = await world.client.post("CreateChatCompletion", chat(world.model, max_tokens=8))
        body = json.loads(data)
        assert (status, body["choices"][0]["message"]["content"]) == (200, "Hello there")
        assert body["usage"]["completion_tokens"] == 2
        assert [(run.once, list(run.resume)) for run in worker.runs] == [(True, []), (True, [])]
        await until(lambda: len({event.attempt for event in world.usage}) == 2, 30.0)
        assert {event.attempt: event.usage.output_tokens for event in world.usage} == {1: 0, 2: 2}
        await world.client.post("CreateChatCompletion", chat(world.model, max_tokens=8, stream=True))
        await world.client.post("CreateChatCompletion", chat(world.model, max_tokens=1000), max_output_tokens=None)
        assert [run.once for run in worker.runs[2:]] == [False, False]


@pytest.mark.parametrize("recovers", [True, False])
async def test_a_whole_answers_lost_parts_count_only_when_it_became_whole(start_world: Any, recovers: bool) -> None:
    async def script(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        if request.ticket.attempt == 1 or not recovers:
            yield one("Hello", 11)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        yield one(" again", 12, finish=True)
        yield done(1)

    async with start_world(worker=False) as world:
        await world.start_worker(script=script)
        long = chat(world.model, max_tokens=1000)
        status, headers, data, _ = await world.client.post("CreateChatCompletion", long, max_output_tokens=None)
        attempts = 2 if recovers else 3
        await until(lambda: len({event.attempt for event in world.usage}) == attempts, 30.0)
        counted = {event.attempt: event.usage.output_tokens for event in world.usage}
        if recovers:
            assert (status, counted) == (200, {1: 1, 2: 1})
            assert json.loads(data)["usage"]["completion_tokens"] == 2
        else:
            assert (status, counted) == (502, {1: 0, 2: 0, 3: 0})
            assert headers["x-should-retry"] == "true"


async def test_three_lost_workers_are_enough(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=vanish_at_once)
        status, _, data, _ = await world.client.post("CreateChatCompletion", chat(world.model))
        assert (status, code(data)) == (502, "worker_lost")
        assert [run.ticket.attempt for run in worker.runs] == [1, 2, 3]
        await until(lambda: len(world.usage) == 3)
        assert [(event.attempt, event.last) for event in world.usage] == [(1, False), (2, False), (3, True)]


async def test_a_worker_that_falls_silent_is_lost(start_world: Any) -> None:
    async with start_world(worker=False, worker_idle_seconds=1.5, attempts=1) as world:
        worker = await world.start_worker(script=forever)
        _, _, data, _ = await world.client.post("CreateChatCompletion", chat(world.model, stream=True))
        assert "worker_lost" in data.decode()
        assert data.endswith(b"data: [DONE]\n\n")
        await until(lambda: worker.cancelled)
        await until(lambda: any(event.provider != "worker" for event in world.usage))
        own = [event for event in world.usage if event.provider != "worker"]
        assert [(event.status, event.usage.output_tokens) for event in own] == [(billing.ATTEMPT_STATUS_WORKER_LOST, 1)]


async def test_a_worker_whose_process_is_stopped_is_lost_although_its_connection_stands(start_world: Any) -> None:
    async with start_world(worker=False, worker_silent_seconds=3.0) as world:
        worker = await world.start_worker(script=forever, proxied=True)
        messages = aiter(world.client.open("CreateChatCompletion", chat(world.model, stream=True)))
        data = b""
        while b"Hello" not in data:
            data += HttpBody.FromString(await anext(messages)).data
        worker.task.cancel()
        await worker.bus._client.close()
        worker.proxy.stall()

        async def goes_on(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
            yield one(" again", 2, finish=True)
            yield done(1)

        second = await world.start_worker(script=goes_on)
        async with asyncio.timeout(60):
            async for message in messages:
                data += HttpBody.FromString(message).data
        assert text(data) == "Hello again"
        assert [list(array.ids) for array in second.runs[0].resume] == [[1]]
        worker.proxy.resume()
