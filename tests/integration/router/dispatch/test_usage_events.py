"""Usage events that the router publishes when a worker dies before its own is safe, and when they cannot be stored."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import nats.errors
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.dispatch.v1 import run_pb2
from uplion.inference.v1 import sampling_pb2

from tests.integration.router.dispatch.scripts import chat, code, one
from tests.kit.until import until

STOP = sampling_pb2.FINISH_REASON_STOP
SECONDS = 30.0


async def answers_or_breaks(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
    """Two tokens; asked for one, it breaks off as a killed process does."""
    if request.sampling.max_output_tokens == 1:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    yield one("Hello", 1)
    yield one(" there", 2, finish=True)
    usage = sampling_pb2.TokenUsage(input_tokens=7, cached_tokens=3, output_tokens=2)
    yield run_pb2.RunEvent(usage=usage)


async def one_answer(world: Any) -> Any:
    """A worker that answered one request and published no usage event."""
    worker = await world.start_worker(script=answers_or_breaks, mute=True)
    status, *_ = await world.client.post("CreateChatCompletion", chat(world.model), request_id=world.model)
    assert status == 200
    assert world.usage == []
    return worker


def check_told(world: Any, worker: Any) -> None:
    told = [event for event in world.usage if event.request_id == world.model]
    assert len(told) == 1
    assert (told[0].attempt, told[0].status, told[0].last) == (1, billing.ATTEMPT_STATUS_COMPLETED, True)
    assert told[0].usage == sampling_pb2.TokenUsage(input_tokens=7, cached_tokens=3, output_tokens=2)
    assert (told[0].finish_reason, told[0].reservation) == (STOP, "res1")
    assert told[0].ticket_time == worker.offered[0].publish_time, "the ledger finds a twin by it"


async def test_the_usage_of_a_finished_attempt_is_told_when_its_ticket_comes_back(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await one_answer(world)
        await worker.offer(worker.offered[0])
        await until(lambda: worker.refused and world.usage, SECONDS)
        await worker.offer(worker.offered[0])
        await until(lambda: len(worker.refused) == 2, SECONDS)
        check_told(world, worker)


async def test_the_usage_of_a_finished_attempt_is_told_when_its_worker_vanishes(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await one_answer(world)
        await worker.vanish()
        await until(lambda: world.usage, SECONDS)
        check_told(world, worker)


async def test_the_usage_of_a_finished_attempt_is_told_when_its_worker_breaks_off_another_one(start_world: Any) -> None:
    async with start_world(worker=False, attempts=1) as world:
        worker = await one_answer(world)
        status, *_ = await world.client.post("CreateChatCompletion", chat(world.model, max_tokens=1))
        assert status == 502
        await until(lambda: len(world.usage) == 2, SECONDS)
        check_told(world, worker)


async def test_a_cancelled_attempt_whose_worker_dies_is_told_with_what_the_client_got(start_world: Any) -> None:
    async def forever(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        yield one("Hello", 1)
        await asyncio.sleep(3600)

    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=forever, mute=True)
        call = world.client.open("CreateChatCompletion", chat(world.model, stream=True))
        await call.read()
        call.cancel()
        await until(lambda: worker.cancelled, SECONDS)
        await worker.vanish()
        event = await world.one_usage()
        assert (event.status, event.last) == (billing.ATTEMPT_STATUS_CANCELLED, True)
        assert (event.usage.input_tokens, event.usage.output_tokens) == (7, 1)


async def test_nothing_is_told_twice_of_a_worker_that_leaves_in_order(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await one_answer(world)
        await worker.announce(draining=True)
        await worker.vanish()
        worker.task.cancel()
        await asyncio.wait([worker.task])
        other = await world.start_worker()
        status, *_ = await world.client.post("CreateChatCompletion", chat(world.model), request_id=f"{world.model}-2")
        assert status == 200
        await until(lambda: world.usage, SECONDS)
        assert [event.request_id for event in world.usage] == [f"{world.model}-2"]
        assert other.runs


async def test_no_work_is_begun_whose_usage_no_worker_can_have_stored(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker()
        await worker.announce(unmetered=True)

        async def refused() -> bool:
            status, headers, data, _ = await world.client.post("CreateChatCompletion", chat(world.model))
            return (status, headers.get("retry-after")) == (503, "1") and code(data) == "unavailable"

        async def admitted() -> bool:
            return not await refused()

        await until(refused, SECONDS)
        seen = len(worker.offered)
        assert await refused()
        assert len(worker.offered) == seen, "no ticket was published"
        await worker.announce()
        await until(admitted, SECONDS)


async def test_a_router_that_cannot_store_usage_refuses_quickly(
    start_world: Any, start_server: Any, tmp_path: Any
) -> None:
    """Its spool is full, and the stream does not take the refusals either: 503, and all of them arrive in the end."""
    server = await asyncio.to_thread(start_server, "nats")
    async with start_world(url=server.url, spool_dir=tmp_path, spool_bytes=1000) as world:
        await server.kill()
        await until(lambda: not world.bus.connected, SECONDS)
        spent = []
        for number in range(10):
            began = time.monotonic()
            status, headers, data, _ = await world.client.post(
                "CreateChatCompletion", chat(world.model), request_id=f"{world.model}-{number}"
            )
            assert (status, code(data), headers["retry-after"]) == (503, "unavailable", "1")
            spent.append(time.monotonic() - began)
        assert min(spent) < 1.0, "a busy machine may hold up some of them"
        await server.start()
        await _stored(world, 10)


async def _stored(world: Any, count: int) -> None:
    async def stored() -> bool:
        info = await world.bus.js.stream_info("USAGE", subjects_filter=f"usage.{world.model}")
        return sum((info.state.subjects or {}).values()) == count

    await until(stored, SECONDS, ignoring=(nats.errors.Error, TimeoutError))


async def test_what_a_router_owes_is_told_after_its_restart(start_world: Any, start_server: Any, tmp_path: Any) -> None:
    server = await asyncio.to_thread(start_server, "nats")
    async with start_world(url=server.url, spool_dir=tmp_path) as world:
        await server.kill()
        await until(lambda: not world.bus.connected, SECONDS)
        status, *_ = await world.client.post("CreateChatCompletion", chat(world.model))
        assert status == 503
        model = world.model
        world.stop.set()
        async with asyncio.timeout(SECONDS):
            await world.router
    await server.start()
    async with start_world(url=server.url, worker=False, spool_dir=tmp_path) as again:
        again.model = model
        await _stored(again, 1)
