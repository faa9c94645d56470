"""A running request whose deadline is over, or whose client left: its worker stops, and its usage is published."""

import asyncio
import json
from typing import Any

from uplion.billing.v1 import usage_event_pb2 as billing

from tests.integration.router.dispatch.scripts import chat, code, forever, silent
from tests.kit.until import until


async def test_the_deadline_ends_a_stream_with_an_error_frame(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=forever)
        body = chat(world.model, stream=True)
        for seconds in (0.4, 3.0, 15.0):
            status, _, data, _ = await world.client.post("CreateChatCompletion", body, deadline_seconds=seconds)
            if status == 200:  # a busy machine may not begin a stream within a short one
                break
        *_, error, end, empty = data.decode().split("\n\n")
        assert status == 200
        assert json.loads(error[6:])["error"]["code"] == "deadline_exceeded"
        assert (end, empty) == ("data: [DONE]", "")
        await until(lambda: worker.cancelled)


async def test_a_client_that_leaves_mid_stream_stops_the_worker(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=forever)
        call = world.client.open("CreateChatCompletion", chat(world.model, stream=True))
        await call.read()
        call.cancel()
        await until(lambda: worker.cancelled)
        event = await world.one_usage()
        assert (event.status, event.provider) == (billing.ATTEMPT_STATUS_CANCELLED, "worker")


async def test_a_client_that_leaves_before_the_first_token_stops_the_worker(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=silent)
        call = world.client.open("CreateChatCompletion", chat(world.model))
        reading = asyncio.create_task(call.read())
        await until(lambda: worker.runs)
        call.cancel()
        await asyncio.wait([reading])
        await until(lambda: worker.cancelled)


async def test_a_deadline_that_a_worker_used_up_is_not_to_be_tried_again_unasked(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        await world.start_worker(script=forever)
        body = chat(world.model)
        for seconds in (1.0, 4.0, 16.0):
            status, headers, data, _ = await world.client.post("CreateChatCompletion", body, deadline_seconds=seconds)
            assert (status, code(data)) == (504, "deadline_exceeded")
            if headers["x-should-retry"] == "false":  # a busy machine may not begin within a short one
                break
        assert headers["x-should-retry"] == "false"


async def test_a_client_that_leaves_a_short_answer_stops_the_worker(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=forever)
        call = world.client.open("CreateChatCompletion", chat(world.model, max_tokens=8))
        await until(lambda: worker.runs, 30.0)
        assert worker.runs[0].once
        call.cancel()
        await until(lambda: worker.cancelled, 30.0)
        assert (await world.one_usage()).status == billing.ATTEMPT_STATUS_CANCELLED
