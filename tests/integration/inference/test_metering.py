"""A worker's usage reaches the stream: spooled, sent by the next process, and no work without it."""

import asyncio
import os
import sys
from contextlib import asynccontextmanager

import grpc.aio
from nats.js import api
from uplion.billing.v1.usage_event_pb2 import AttemptStatus

from common import names
from tests.kit.fake_router import fake_router, manifest_file
from tests.kit.until import until
from tests.kit.usage_events import spooled

SECONDS = 40.0


@asynccontextmanager
async def process(manifest, nats_url, spool, more_environment=None):
    """A worker as it runs for real."""
    environment = {
        **os.environ,
        **(more_environment or {}),
        "UPLION_INFERENCE_MANIFEST": str(manifest),
        "UPLION_INFERENCE_SPOOL_DIR": str(spool),
        "NATS_URL": nats_url,
    }
    running = await asyncio.create_subprocess_exec(sys.executable, "-m", "inference", env=environment)
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def test_usage_spooled_by_a_killed_worker_is_sent_by_the_next_one(start_server, tmp_path):
    server = await asyncio.to_thread(start_server, "nats")
    spool = tmp_path / "spool"
    manifest = manifest_file(tmp_path, "spooling", synthetic={"outputTokens": 300, "tokensPerSecond": 100})
    async with fake_router(server.url, "spooling") as router:
        async with process(manifest, server.url, spool) as first:
            await until(router.worker)
            request = router.chat()
            call = await router.open(request)
            await call.read()
            await server.kill()
            while (event := await call.read()) is not grpc.aio.EOF:
                last = event
            assert last.usage.output_tokens == 300, "the answer does not need the broker"

            await until(lambda: asyncio.to_thread(spooled, spool))
            first.kill()
        await server.start()
        async with process(manifest, server.url, spool):
            await until(lambda: router.bus.connected)
            await router.bus.ensure_streams()
            usage = await router.usage(request.ticket.request_id)
            assert (usage.status, usage.usage.output_tokens) == (AttemptStatus.ATTEMPT_STATUS_COMPLETED, 300)
            assert usage.ticket_time == request.ticket.publish_time

            async def empty():
                return not await asyncio.to_thread(spooled, spool)

            await until(empty)


async def test_a_worker_whose_usage_is_refused_takes_no_tickets_until_it_is_not(
    start_server, start_worker_at, tmp_path
):
    server = await asyncio.to_thread(start_server, "nats")
    worker = await start_worker_at(server.url, tmp_path / "spool")
    router = worker.router

    async def limit(size):
        config = (await router.bus.js.stream_info(names.STREAM_USAGE)).config
        config.max_bytes, config.discard = size, api.DiscardPolicy.NEW
        await router.bus.js.update_stream(config)

    async def unmetered():
        state = await router.worker()
        return state is not None and state.unmetered

    async def metered():
        state = await router.worker()
        return state is not None and not state.unmetered

    await limit(1)
    first, second = router.chat(max_output_tokens=2), router.chat(max_output_tokens=2)
    assert (await router.run(first))[-1].usage.output_tokens == 2
    await until(unmetered)
    deliveries = await router.deliveries()
    offering = asyncio.ensure_future(router.offer(second.ticket))
    await router.left_alone(deliveries)
    assert not offering.done(), "it would be inference for nothing"
    await limit(-1)
    offer, _ = await asyncio.wait_for(offering, SECONDS)
    async for _ in router.stub(offer).Run(second):
        pass
    await until(metered)
    events = await router.usages([(request.ticket.request_id, 1) for request in (first, second)])
    assert [event.usage.output_tokens for event in events] == [2, 2]


async def test_a_late_ticket_that_was_delivered_before_is_its_routers_to_judge(start_worker, monkeypatch):
    """Its attempt may have been completed by a worker that died: an event of ours would say that nothing came of it."""
    monkeypatch.setattr("inference.tickets.intake.OFFER_SECONDS", 2.0)
    router = (await start_worker()).router
    ticket = router.ticket(seconds=2.8)
    await router.offer(ticket)  # nobody opens the run: it comes back, and by then its time is over
    again = router.offers[ticket.request_id] = asyncio.get_running_loop().create_future()
    _, message = await asyncio.wait_for(again, SECONDS)
    await message.respond(b"")
    await router.settled()
    info = await router.bus.js.stream_info(names.STREAM_USAGE, subjects_filter=names.usage_subject(router.model))
    assert not info.state.subjects
