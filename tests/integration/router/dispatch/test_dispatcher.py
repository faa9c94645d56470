"""Offers, the flow of a stream, the drain, and a crowd of requests that end in every way."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from google.api.httpbody_pb2 import HttpBody
from uplion.dispatch.v1 import run_pb2

from common.operations import Operation
from router.surfaces.base import CallLifecycle
from rpc.identity import caller
from tests.integration.router.dispatch.scripts import chat, done, forever, one, text
from tests.kit.until import until


async def test_a_worker_that_took_its_offer_back_is_asked_anew(start_world: Any) -> None:
    async def late(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        if request.ticket.attempt == 1:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "taken back")
        yield one("fine", 1, finish=True)
        yield done(1)

    async with start_world(worker=False) as world:
        await world.start_worker(script=late)
        status, *_ = await world.client.post("CreateChatCompletion", chat(world.model))
        assert status == 200


async def test_the_first_offer_wins_and_later_ones_are_refused(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=forever)
        call = world.client.open("CreateChatCompletion", chat(world.model, stream=True))
        await call.read()
        await worker.offer(worker.offered[0])
        await until(lambda: worker.refused)
        assert len(worker.runs) == 1
        call.cancel()
        await until(lambda: worker.cancelled)
        await worker.offer(worker.offered[0])
        await until(lambda: len(worker.refused) == 2)


async def test_a_silent_stream_gets_signs_of_life(start_world: Any) -> None:
    heard = asyncio.Event()

    async def slow(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        await heard.wait()
        yield one("x", 1, finish=True)
        yield done(1)

    async with start_world(worker=False, stream_keepalive_seconds=0.15) as world:
        await world.start_worker(script=slow)
        started = time.monotonic()
        data = b""
        async for message in world.client.open("CreateChatCompletion", chat(world.model, stream=True)):
            frame = HttpBody.FromString(message)
            assert frame.content_type in ("text/event-stream", "")
            data += frame.data
            if not heard.is_set() and data.count(b": keep-alive\n\n") == 2:
                assert time.monotonic() - started > 0.2
                heard.set()
        assert text(data) == "x"


async def test_a_reader_that_stops_reading_holds_back_neither_memory_nor_the_others(start_world: Any) -> None:
    sent = 0

    async def flood(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        nonlocal sent
        if request.sampling.max_output_tokens == 1:
            yield one("quick", 1, finish=True)
            yield done(1)
            return
        for token in range(40_000):
            sent += 1
            yield one("y" * 10_000, token)
        yield one("", 0, finish=True)
        yield done(40_000)

    async with start_world(worker=False, pending_bytes=50_000) as world:
        await world.start_worker(script=flood)
        call = world.client.open("CreateChatCompletion", chat(world.model, stream=True))
        await call.read()
        before = -1
        while sent != before:  # until flow control holds the engine
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 3_000  # 30 MB would be on the way
        status, *_ = await world.client.post("CreateChatCompletion", chat(world.model, max_tokens=1))
        assert status == 200
        call.cancel()


async def test_stopping_lets_running_requests_finish(start_world: Any) -> None:
    async def slow(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        for token in range(5):
            yield one("x", token)
            await asyncio.sleep(0.1)
        yield one("", 9, finish=True)
        yield done(5)

    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=slow)
        asking = [
            asyncio.create_task(world.client.post("CreateChatCompletion", chat(world.model, stream=True)))
            for _ in range(8)
        ]
        await until(lambda: len(worker.runs) == 8)
        world.stop.set()
        for status, _, data, _ in await asyncio.gather(*asking):
            assert status == 200
            assert text(data) == "xxxxx"
            assert data.endswith(b"data: [DONE]\n\n")


async def test_every_admitted_request_ends_in_a_last_usage_event(
    start_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crowd of every fate at once: as many reservations settled as were made, and none twice."""
    count = 0
    admitted: list[str] = []
    serve = CallLifecycle.serve

    async def noting(self: CallLifecycle, operation: Operation, context: Any, call: Any) -> Any:
        admitted.append(caller().request_id)
        return await serve(self, operation, context, call)

    monkeypatch.setattr(CallLifecycle, "serve", noting)

    async def moody(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        nonlocal count
        count += 1
        yield one("a", 1)
        if count % 3 == 0:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        await asyncio.sleep(0.01)
        yield one("b", 2, finish=True)
        yield done(2)

    async with start_world(worker=False) as world:
        await world.start_worker(script=moody)

        async def ask(number: int) -> None:
            body = chat(world.model, stream=number % 2 == 0) if number % 5 else b"{"
            call = world.client.open("CreateChatCompletion", body, request_id=f"{world.model}-{number}")
            if number % 7 == 0:
                await asyncio.sleep(0.01 * (number % 4))
                call.cancel()
                return
            async for _ in call:
                pass

        await asyncio.gather(*(ask(number) for number in range(60)))
        await until(lambda: {event.request_id for event in world.usage if event.last} >= set(admitted))
        assert len(admitted) >= 51
        assert len(admitted) == len(set(admitted))
