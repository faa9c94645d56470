"""NATS dies before, during and after a request."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import nats.errors
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.dispatch.v1 import run_pb2

from tests.integration.router.dispatch.scripts import chat, code, done, one, text
from tests.kit.until import until


async def last_usage(world: Any) -> Any:
    """The newest event in the stream: after a restart a plain subscriber may come back later than the router."""

    async def refused() -> Any:
        found = await world.bus.js.get_last_msg("USAGE", f"usage.{world.model}")
        return found if b"UNAVAILABLE" in found.data else None

    return await until(refused, ignoring=(nats.errors.Error, TimeoutError))


async def test_nats_away_is_a_quick_503_and_the_usage_event_comes_later(start_world: Any, start_server: Any) -> None:
    server = await asyncio.to_thread(start_server, "nats")
    async with start_world(url=server.url, publish_seconds=0.9) as world:

        async def answered() -> bool:
            return (await world.client.post("CreateChatCompletion", chat(world.model)))[0] == 200

        await until(answered)
        await server.kill()
        started = time.monotonic()
        status, headers, data, _ = await world.client.post("CreateChatCompletion", chat(world.model))
        assert time.monotonic() - started < 20  # the request itself could wait for 120 s
        assert (status, code(data)) == (503, "unavailable")
        assert headers["retry-after"] == "1"
        await server.start()
        event = billing.UsageEvent.FromString((await last_usage(world)).data)
        assert (event.status, event.error_reason) == (billing.ATTEMPT_STATUS_REFUSED, "UNAVAILABLE")


async def test_a_stream_survives_the_loss_of_nats(start_world: Any, start_server: Any) -> None:
    release = asyncio.Event()

    async def held(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        yield one("a", 1)
        await release.wait()
        yield one("b", 2, finish=True)
        yield done(2)

    server = await asyncio.to_thread(start_server, "nats")
    async with start_world(url=server.url, worker=False) as world:
        worker = await world.start_worker(script=held)
        asking = asyncio.create_task(world.client.post("CreateChatCompletion", chat(world.model, stream=True)))
        await until(lambda: worker.runs)
        await server.kill()
        release.set()
        status, _, data, _ = await asking
        assert (status, text(data)) == (200, "ab")
        await server.start()


async def test_a_queued_request_survives_a_restart_of_nats(start_world: Any, start_server: Any) -> None:
    server = await asyncio.to_thread(start_server, "nats")
    async with start_world(url=server.url, worker=False) as world:
        asking = asyncio.create_task(world.client.post("CreateChatCompletion", chat(world.model)))
        await world.until_queued()
        await server.kill()
        await server.start()
        await until(lambda: world.bus.reconnects)
        await world.bus.ensure_streams()
        await world.start_worker()
        status, *_ = await asyncio.wait_for(asking, 60)
        assert status == 200
