"""Who publishes an attempt's usage event, and what happens if they die: each cell of `attempts.ACCOUNTING`.

A scripted worker acknowledges its tickets at once, so the ticket of a lost one does not come back here.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.dispatch.v1 import run_pb2
from uplion.inference.v1 import sampling_pb2

from common.errors import Reason, UplionError
from common.settings import dump
from router.dispatch.accounting.attempts import ACCOUNTING, Fallback, Publisher, State
from router.settings import RouterSettings
from rpc.interceptors import abort
from tests.integration.router.conftest import Client
from tests.kit.proof import PROOF_KEYS, ProvenChannel
from tests.kit.scripted_worker import hello, word
from tests.kit.services import ServiceProcess
from tests.kit.until import until

SECONDS = 60.0
CHAT = "CreateChatCompletion"
STATUS = {
    State.QUEUED: billing.ATTEMPT_STATUS_CANCELLED,
    State.OFFERED: billing.ATTEMPT_STATUS_CANCELLED,
    State.RUNNING: billing.ATTEMPT_STATUS_CANCELLED,
    State.COMPLETE: billing.ATTEMPT_STATUS_COMPLETED,
    State.LOST: billing.ATTEMPT_STATUS_WORKER_LOST,
    State.REFUSED: billing.ATTEMPT_STATUS_REFUSED,
}


def body(model: str) -> bytes:
    return json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()


def script_of(state: State) -> Any:
    """What a worker does so that its attempt comes to the state, and stays there until its client leaves."""

    async def script(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        if state is State.COMPLETE:
            async for event in hello(request, context):
                yield event
            return
        if state is State.LOST:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if state is State.REFUSED:
            await abort(context, UplionError(Reason.INVALID_REQUEST, "The engine refuses it."))
        if state is State.RUNNING:
            yield run_pb2.RunEvent(deltas=[word(0, "Hello", 1)], input_tokens=7)
        await asyncio.sleep(3600)
        yield run_pb2.RunEvent(usage=sampling_pb2.TokenUsage())

    return script


async def read_to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def end_in(world: Any, state: State) -> Any:
    """Sends a request whose attempt ends in the state; returns its worker, if it had one."""
    worker: Any = None
    if state is not State.QUEUED:
        worker = await world.start_worker(script=script_of(state), mute=True)
    call = world.client.open(CHAT, body(world.model), request_id=world.model)
    reading = asyncio.create_task(call.read())
    if state is State.QUEUED:
        await world.until_queued()
    elif state is State.OFFERED:
        await until(lambda: worker.runs)
    elif state is State.RUNNING:
        await asyncio.wait([reading])
    else:
        await reading
        await read_to_the_end(call)
        return worker
    call.cancel()
    await asyncio.wait([reading])
    return worker


async def published(world: Any) -> list[billing.UsageEvent]:
    """The events of the request under test that the router has published so far."""
    await world.usage_published()
    return [event for event in world.usage if event.request_id == world.model]


@pytest.mark.parametrize("state", list(State))
async def test_the_event_is_the_routers_or_the_workers_and_the_routers_when_the_worker_dies(
    start_world: Any, state: State
) -> None:
    """The worker publishes nothing, as one that dies before its event is safe."""
    async with start_world(worker=False, attempts=1) as world:
        worker = await end_in(world, state)
        if ACCOUNTING[state].publisher is Publisher.ROUTER:
            await until(lambda: any(event.request_id == world.model for event in world.usage))
        else:
            if state is State.RUNNING:
                await until(lambda: worker.cancelled)
            assert await published(world) == []
            assert ACCOUNTING[state].fallback is Fallback.MEMORY
        if worker is not None:
            await worker.vanish()
        await until(lambda: any(event.request_id == world.model for event in world.usage))
        (event,) = await published(world)
        assert (event.attempt, event.status, event.last) == (1, STATUS[state], True)


@pytest.mark.parametrize("state", [State.QUEUED, State.OFFERED, State.RUNNING, State.COMPLETE])
async def test_a_router_that_dies_leaves_the_attempt_to_a_worker(
    start_world: Any, nats_url: str, tmp_path: Path, state: State
) -> None:
    async with start_world(worker=False) as world:
        worker = None if state is State.QUEUED else await world.start_worker(script=script_of(state))
        settings = replace(RouterSettings(nats_url=nats_url, proof_keys=PROOF_KEYS), publish_seconds=30.0)
        router = await asyncio.to_thread(ServiceProcess, "router", environment=dump(settings), folder=tmp_path)
        try:
            async with grpc.aio.insecure_channel(router.address) as channel:
                client = Client(ProvenChannel(channel), world.client.identity)
                call = client.open(CHAT, body(world.model), request_id=world.model)
                reading = asyncio.create_task(call.read())
                if worker is None:
                    await world.until_queued()
                else:
                    runs = worker.runs
                    await until(lambda: runs)
                if state in (State.RUNNING, State.COMPLETE):
                    await asyncio.wait([reading])
                if state is State.COMPLETE:
                    await read_to_the_end(call)
                router.process.send_signal(signal.SIGKILL)
                await asyncio.to_thread(router.process.wait, SECONDS)
                await asyncio.wait([reading])
        finally:
            router.process.kill()
        if worker is None:  # its ticket waits for a worker, whose offer finds no router
            worker = await world.start_worker()
            await until(lambda: worker.refused)
            assert [ticket.request_id for ticket in worker.offered] == [world.model]
            assert worker.runs == []
        else:
            event = await world.one_usage()
            assert (event.provider, event.status) == ("worker", STATUS[state])
