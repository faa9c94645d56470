"""A request that no worker has begun: how long it waits, and how it ends."""

import asyncio
from typing import Any

from uplion.billing.v1 import usage_event_pb2 as billing

from tests.integration.router.dispatch.scripts import chat, code


async def test_a_model_without_a_worker_is_loading(start_world: Any) -> None:
    async with start_world(worker=False, model_loading_seconds=2.0) as world:
        status, headers, data, _ = await world.client.post("CreateChatCompletion", chat(world.model))
        assert (status, code(data)) == (503, "model_loading")
        assert int(headers["retry-after"]) > 0
        event = await world.one_usage()
        assert (event.status, event.last, event.error_reason) == (
            billing.ATTEMPT_STATUS_REFUSED,
            True,
            "MODEL_LOADING",
        )
        assert event.HasField("ticket_time")
        info = await world.bus.js.stream_info("TASKS", subjects_filter=world.tickets)
        assert not info.state.subjects, "the ticket was not taken back"


async def test_a_request_waits_for_its_models_first_worker(start_world: Any) -> None:
    async with start_world(worker=False, model_loading_seconds=60.0) as world:
        asking = asyncio.create_task(world.client.post("CreateChatCompletion", chat(world.model)))
        await world.until_queued()
        assert not asking.done()
        await world.start_worker()
        status, *_ = await asking
        assert status == 200


async def test_a_queue_that_does_not_move_is_overload(start_world: Any) -> None:
    async with start_world(worker=False, queue_seconds=0.3, model_loading_seconds=0.3) as world:
        await world.start_worker(slots=0)
        for _ in range(20):
            status, headers, data, _ = await world.client.post("CreateChatCompletion", chat(world.model))
            if code(data) != "model_loading":  # the router has heard of the worker
                break
        assert (status, code(data)) == (503, "overloaded")
        assert headers["x-should-retry"] == "true"


async def test_the_deadline_ends_a_queued_request(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        body = chat(world.model)
        status, headers, data, _ = await world.client.post("CreateChatCompletion", body, deadline_seconds=0.2)
        assert (status, code(data)) == (504, "deadline_exceeded")
        assert headers["x-should-retry"] == "true"
        assert (await world.one_usage()).status == billing.ATTEMPT_STATUS_TIMED_OUT


async def test_a_client_that_leaves_the_queue_is_metered_and_its_ticket_is_worthless(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        call = world.client.open("CreateChatCompletion", chat(world.model))
        reading = asyncio.create_task(call.read())
        await world.until_queued()
        call.cancel()
        await asyncio.wait([reading])
        event = await world.one_usage()
        assert (event.status, event.last) == (billing.ATTEMPT_STATUS_CANCELLED, True)
        worker = await world.start_worker()
        await world.client.post("CreateChatCompletion", chat(world.model), request_id="later")
        assert [run.ticket.request_id for run in worker.runs] == ["later"], "tickets come in their order"
