"""A worker that is stopped, whose engine breaks, or whose broker dies: what runs is finished and metered."""

import asyncio
import os
import sys
from contextlib import suppress

import grpc
import pytest
from uplion.billing.v1.usage_event_pb2 import AttemptStatus

from common.errors import Reason, UplionError
from common.manifest import Synthetic
from inference import app
from inference.engines.synthetic import SyntheticEngine
from inference.settings import InferenceSettings
from tests.kit.fake_router import WAIT_SECONDS, fake_router, manifest_file
from tests.kit.until import until


async def test_stopping_finishes_what_runs_and_takes_nothing_new(start_worker):
    worker = await start_worker(synthetic={"outputTokens": 100, "tokensPerSecond": 100})
    router = worker.router
    request = router.chat()
    call = await router.open(request)
    await call.read()
    worker.stop.set()

    async def draining():
        state = await router.worker()
        return state is None or state.draining

    await until(draining)
    late = router.ticket()
    await router.publish(late)
    tokens = 0
    while (event := await call.read()) is not grpc.aio.EOF:
        tokens = max(tokens, event.usage.output_tokens)
    assert tokens == 100
    await worker.ended()
    assert await router.worker() is None
    assert (await router.usage(request.ticket.request_id)).status == AttemptStatus.ATTEMPT_STATUS_COMPLETED
    assert await router.unsettled() == 1, "the late ticket waits for another worker"


class BrokenEngine(SyntheticEngine):
    """Works until it breaks."""

    def __init__(self):
        super().__init__(Synthetic(outputTokens=10_000, tokensPerSecond=100), None)
        self.broken = asyncio.Event()
        self.outputs = []

    async def failure(self):
        await self.broken.wait()
        for output in self.outputs:
            output.fail(UplionError(Reason.INTERNAL, "The model's engine failed."))
        return RuntimeError("out of memory")

    async def generate(self, generation, output):
        self.outputs.append(output)
        await super().generate(generation, output)


async def test_a_broken_engine_fails_its_requests_and_ends_the_worker(nats_url, tmp_path, monkeypatch):
    engine = BrokenEngine()
    monkeypatch.setattr(app, "engine_for", lambda *_: engine)
    settings = InferenceSettings(manifest_file(tmp_path, "broken"), nats_url)
    worker = asyncio.ensure_future(app.main(settings, asyncio.Event(), lambda address: None))
    async with fake_router(nats_url, "broken") as router:
        await until(router.worker)
        request = router.chat()
        call = await router.open(request)
        await call.read()
        engine.broken.set()
        with suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert await call.code() == grpc.StatusCode.INTERNAL, "it must not look complete"
        usage = await router.usage(request.ticket.request_id)
        assert (usage.status, usage.error_reason) == (AttemptStatus.ATTEMPT_STATUS_FAILED, "INTERNAL")
        with pytest.raises(app.EngineError, match="out of memory"):
            await worker
        assert await router.worker() is None


async def test_usage_survives_a_broker_that_dies_and_comes_back(start_server, tmp_path):
    server = await asyncio.to_thread(start_server, "nats")
    settings = InferenceSettings(
        manifest_file(tmp_path, "lonely", synthetic={"outputTokens": 100, "tokensPerSecond": 100}), server.url
    )
    stop = asyncio.Event()
    worker = asyncio.ensure_future(app.main(settings, stop, lambda address: None))
    async with fake_router(server.url, "lonely") as router:
        await until(router.worker)
        request = router.chat()
        call = await router.open(request)
        await call.read()
        await server.kill()
        while (event := await call.read()) is not grpc.aio.EOF:
            last = event
        assert last.usage.output_tokens == 100, "the answer does not need the broker"
        await server.start()
        await until(lambda: router.bus.connected)
        usage = await router.usage(request.ticket.request_id)
        assert usage.status == AttemptStatus.ATTEMPT_STATUS_COMPLETED
        stop.set()
        await worker


async def test_sigterm_under_load_finishes_what_runs(nats_url, tmp_path):
    """The real process: it drains, and exits with 0."""
    manifest = manifest_file(tmp_path, "process", synthetic={"outputTokens": 100, "tokensPerSecond": 100})
    environment = {**os.environ, "UPLION_INFERENCE_MANIFEST": str(manifest), "NATS_URL": nats_url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inference", env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with fake_router(nats_url, "process") as router:
            await until(router.worker)
            requests = [router.chat() for _ in range(8)]
            calls = await asyncio.gather(*map(router.open, requests))
            for call in calls:
                await call.read()
            process.terminate()
            for call in calls:
                while (event := await call.read()) is not grpc.aio.EOF:
                    last = event
                assert last.usage.output_tokens == 100
            async with asyncio.timeout(WAIT_SECONDS):
                assert await process.wait() == 0
            events = await router.usages([(request.ticket.request_id, 1) for request in requests])
            assert {event.status for event in events} == {AttemptStatus.ATTEMPT_STATUS_COMPLETED}
            assert await router.unsettled() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
