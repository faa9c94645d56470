"""The worker against a real NATS, with the synthetic engine."""

import asyncio
import os
import sys
import time
from contextlib import suppress

import grpc
import pytest
from uplion.billing.v1.usage_event_pb2 import AttemptStatus
from uplion.dispatch.v1.run_pb2 import EmbeddingInput, RunRequest, TextInput, TokenArray
from uplion.dispatch.v1.worker_service_pb2_grpc import WorkerServiceStub
from uplion.inference.v1.sampling_pb2 import FinishReason

from common import names
from common.deltas import from_message
from common.errors import Reason, UplionError, from_rpc_error
from common.manifest import Synthetic
from inference import app
from inference.engines.synthetic import SyntheticEngine
from inference.settings import InferenceSettings
from tests.kit.fake_router import WAIT_SECONDS, fake_router, manifest_file
from tests.kit.tcp_proxy import TcpProxy
from tests.kit.until import until

SLOW = {"outputTokens": 10_000, "tokensPerSecond": 100}


async def status_of(call):
    """The code a call ends with."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    except asyncio.CancelledError:
        return grpc.StatusCode.CANCELLED
    return grpc.StatusCode.OK


def text(delta):
    return from_message(delta).text


async def test_runs_a_chat_and_meters_it_once(start_worker):
    router = (await start_worker(synthetic={"outputTokens": 5})).router
    request = router.chat("Hello there")
    events = await router.run(request)
    assert len(events) == 1, "one engine step is one event"
    assert events[0].input_tokens == events[0].usage.input_tokens == 3
    assert events[0].usage.output_tokens == 5 == len(events[0].deltas[0].token_ids)
    assert text(events[0].deltas[0]) == " These words come from the"
    assert events[0].deltas[0].finish_reason == FinishReason.FINISH_REASON_STOP
    usage = await router.usage(request.ticket.request_id)
    assert usage.status == AttemptStatus.ATTEMPT_STATUS_COMPLETED
    assert usage.last
    assert (usage.account, usage.key, usage.reservation) == ("acme", "k1", "r1")
    assert (usage.model, usage.model_served, usage.provider) == (router.model, router.model, "synthetic")
    assert usage.usage == events[0].usage
    assert usage.operation == "chat"
    assert usage.finish_reason == FinishReason.FINISH_REASON_STOP
    assert usage.ticket_time == request.ticket.publish_time
    assert usage.HasField("first_token_duration")
    await router.settled()


async def test_says_what_it_is(start_worker):
    worker = await start_worker(maxProcessNum=7, contextLength=1000)
    state = await worker.router.worker()
    assert (state.slots_total, state.slots_free, state.context_tokens, state.draining) == (7, 7, 1000, False)
    assert len(state.capabilities) == 4
    assert state.pid


async def test_streams_at_the_stated_rate(start_worker):
    router = (
        await start_worker(synthetic={"outputTokens": 20, "tokensPerSecond": 100, "firstTokenSeconds": 0.1})
    ).router
    started = time.monotonic()
    events = await router.run(router.chat())
    assert 0.29 <= time.monotonic() - started < WAIT_SECONDS
    assert "".join(text(delta) for event in events for delta in event.deltas).startswith(" These words")
    assert sum(len(delta.token_ids) for event in events for delta in event.deltas) == 20
    assert [event.input_tokens > 0 for event in events] == [True] + [False] * (len(events) - 1)
    assert [event.HasField("usage") for event in events] == [False] * (len(events) - 1) + [True]


async def test_streams_while_it_generates(start_worker):
    """An answer that takes 100 s comes in parts from its beginning on."""
    router = (await start_worker(synthetic=SLOW)).router
    call = await router.open(router.chat())
    for _ in range(5):
        event = await call.read()
        assert event.deltas[0].token_ids
        assert not event.HasField("usage")
    call.cancel()
    await router.settled()


async def test_an_answer_that_is_asked_for_once_is_one_event(start_worker):
    router = (await start_worker(synthetic={"outputTokens": 30, "tokensPerSecond": 20})).router
    request = router.chat()
    request.once = request.whole = True
    (event,) = await router.run(request)
    assert (event.usage.output_tokens, len(event.deltas[0].token_ids)) == (30, 30)
    assert event.deltas[0].finish_reason == FinishReason.FINISH_REASON_STOP


async def test_resumes_stops_and_chooses(start_worker):
    router = (await start_worker(synthetic={"outputTokens": 8})).router
    request = router.chat(choices=2)
    request.resume.extend([TokenArray(ids=[0, 1, 2]), TokenArray(ids=[0] * 8)])
    (event,) = await router.run(request)
    assert {delta.index: text(delta) for delta in event.deltas} == {0: " from the synthetic engine of", 1: ""}
    assert event.usage.output_tokens == 5
    (event,) = await router.run(router.chat(stop=["come from"], max_output_tokens=6))
    assert text(event.deltas[0]) == " These words "
    (event,) = await router.run(router.chat(max_output_tokens=3))
    assert event.deltas[0].finish_reason == FinishReason.FINISH_REASON_LENGTH


async def test_embeds(start_worker):
    router = (await start_worker()).router
    items = [TextInput(text="one"), TextInput(tokens=TokenArray(ids=[1, 2, 3])), TextInput(text="one")]
    request = RunRequest(ticket=router.ticket(), embedding=EmbeddingInput(items=items))
    (event,) = await router.run(request)
    assert len(event.vectors) == 3
    assert event.vectors[0] == event.vectors[2] != event.vectors[1]
    usage = await router.usage(request.ticket.request_id)
    assert (usage.operation, usage.usage.input_tokens, usage.usage.output_tokens) == ("embedding", 5, 0)


async def test_a_cancelled_call_stops_the_engine_and_bills_what_was_made(start_worker):
    router = (await start_worker(synthetic=SLOW)).router
    request = router.chat()
    call = await router.open(request)
    received = 0
    async for event in call:
        received += sum(len(delta.token_ids) for delta in event.deltas)
        if received >= 10:
            break
    call.cancel()
    usage = await router.usage(request.ticket.request_id)
    assert usage.status == AttemptStatus.ATTEMPT_STATUS_CANCELLED
    assert received <= usage.usage.output_tokens < 5_000, "10 000 were asked for, at 100 a second"
    assert usage.error_reason == "CANCELLED"
    await router.settled()
    assert (await router.run(router.chat(max_output_tokens=1)))[-1].usage.output_tokens == 1


async def test_a_lost_connection_is_a_cancelled_call(start_worker):
    router = (await start_worker(synthetic=SLOW)).router
    request = router.chat()
    offer, _ = await router.offer(request.ticket)
    async with TcpProxy(offer.address) as proxy, grpc.aio.insecure_channel(proxy.address) as channel:
        call = WorkerServiceStub(channel).Run(request)
        await call.read()
        proxy.cut()
        usage = await router.usage(request.ticket.request_id)
    assert usage.status == AttemptStatus.ATTEMPT_STATUS_CANCELLED
    await router.settled()


async def test_a_slow_reader_gets_merged_events(start_worker):
    synthetic = {"outputTokens": 200_000, "tokensPerSecond": 200_000}  # 2000 tokens a step, 100 steps
    router = (await start_worker(contextLength=1_000_000, synthetic=synthetic)).router
    call = await router.open(router.chat())
    events, tokens = 0, 0
    async for event in call:
        events += 1
        tokens += sum(len(delta.token_ids) for delta in event.deltas)
        await asyncio.sleep(0.1)
    assert tokens == 200_000
    assert events < 40, "what the reader has not taken yet is one event"


async def test_no_more_requests_than_slots(start_worker):
    router = (await start_worker(maxProcessNum=2, synthetic=SLOW)).router
    first, second = router.chat(), router.chat()
    calls = [await router.open(first), await router.open(second)]
    third = router.chat(max_output_tokens=2)
    deliveries = await router.deliveries()
    opening = asyncio.ensure_future(router.open(third))
    await router.left_alone(deliveries)
    assert not opening.done(), "no slot is free, so there is no offer"
    calls[0].cancel()
    call = await opening
    assert await status_of(call) == grpc.StatusCode.OK
    calls[1].cancel()
    await router.settled()


async def test_a_run_that_was_not_offered_is_refused(start_worker):
    router = (await start_worker()).router
    request = router.chat()
    offer, _ = await router.offer(request.ticket)
    stub = router.stub(offer)
    assert await status_of(stub.Run(router.chat())) == grpc.StatusCode.FAILED_PRECONDITION
    assert await status_of(stub.Run(request)) == grpc.StatusCode.OK
    assert await status_of(stub.Run(request)) == grpc.StatusCode.FAILED_PRECONDITION, "once is enough"
    assert (await router.usage(request.ticket.request_id)).status == AttemptStatus.ATTEMPT_STATUS_COMPLETED


async def test_a_refused_offer_settles_the_ticket_without_an_event(start_worker):
    router = (await start_worker()).router
    request = router.chat()
    offer, message = await router.offer(request.ticket)
    await message.respond(b"")
    await router.settled()
    assert await status_of(router.stub(offer).Run(request)) == grpc.StatusCode.FAILED_PRECONDITION
    info = await router.bus.js.stream_info(names.STREAM_USAGE, subjects_filter=names.usage_subject(router.model))
    assert not info.state.subjects


async def test_a_superseded_attempt_is_not_offered_again(start_worker):
    router = (await start_worker()).router
    second = router.ticket(attempt=2)
    await router.run(router.chat(ticket=second))
    router.offers.clear()
    seen = router.offers[second.request_id] = asyncio.get_running_loop().create_future()
    await router.publish(router.ticket(second.request_id, attempt=1))
    await router.run(router.chat())  # its offer comes after any of the ticket before
    await router.settled()
    assert not seen.done()


async def test_a_ticket_whose_router_is_gone_is_settled_as_cancelled(start_worker):
    router = (await start_worker()).router
    ticket = router.ticket()
    ticket.reply_subject = "nobody.listens.here"
    await router.publish(ticket)
    usage = await router.usage(ticket.request_id)
    assert (usage.status, usage.last) == (AttemptStatus.ATTEMPT_STATUS_CANCELLED, True)
    await router.settled()


async def test_a_late_ticket_is_settled_as_timed_out(start_worker):
    router = (await start_worker()).router
    ticket = router.ticket(seconds=-1.0)
    await router.publish(ticket)
    usage = await router.usage(ticket.request_id)
    assert (usage.status, usage.error_reason) == (AttemptStatus.ATTEMPT_STATUS_TIMED_OUT, "DEADLINE_EXCEEDED")
    assert usage.reservation == "r1"
    await router.settled()


async def test_a_run_ends_at_its_deadline(start_worker):
    router = (await start_worker(synthetic=SLOW)).router
    request = router.chat(ticket=router.ticket(seconds=3.0))
    assert await status_of(await router.open(request)) == grpc.StatusCode.DEADLINE_EXCEEDED
    usage = await router.usage(request.ticket.request_id)
    assert usage.status == AttemptStatus.ATTEMPT_STATUS_TIMED_OUT
    assert usage.usage.output_tokens > 10


async def test_an_unanswered_offer_is_given_to_another(start_worker, monkeypatch):
    monkeypatch.setattr("inference.tickets.intake.OFFER_SECONDS", 2.0)
    router = (await start_worker()).router
    request = router.chat()
    first, _ = await router.offer(request.ticket)
    again = router.offers[request.ticket.request_id] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(WAIT_SECONDS):
        await again
    assert await status_of(router.stub(first).Run(request)) == grpc.StatusCode.OK
    await router.settled()


async def test_what_is_no_ticket_is_buried(start_worker):
    router = (await start_worker()).router
    await router.bus.publish(names.task_subject(router.model), b"\xff\xff not a ticket")
    subscription = await router.bus.js.subscribe(names.dead_subject(names.STREAM_TASKS), ordered_consumer=True)
    message = await subscription.next_msg(WAIT_SECONDS)
    assert message.data == b"\xff\xff not a ticket"
    await subscription.unsubscribe()
    await router.settled()


async def test_a_refused_request_says_why_and_is_metered(start_worker):
    router = (await start_worker(contextLength=10)).router
    request = router.chat("word " * 100)
    call = await router.open(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert from_rpc_error(caught.value).reason is Reason.CONTEXT_LENGTH_EXCEEDED
    usage = await router.usage(request.ticket.request_id)
    assert (usage.status, usage.error_reason) == (
        AttemptStatus.ATTEMPT_STATUS_REFUSED,
        "CONTEXT_LENGTH_EXCEEDED",
    )
    assert usage.usage.output_tokens == 0


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


async def test_two_hundred_at_once_are_each_metered_once(start_worker):
    router = (await start_worker(maxProcessNum=64, synthetic={"outputTokens": 20, "tokensPerSecond": 200})).router
    requests = [router.chat() for _ in range(200)]
    started_seconds = time.monotonic()
    answers = await asyncio.gather(*map(router.run, requests))
    assert all(events[-1].usage.output_tokens == 20 for events in answers)
    elapsed_seconds = time.monotonic() - started_seconds
    events = await router.usages([(request.ticket.request_id, 1) for request in requests])
    assert {event.status for event in events} == {AttemptStatus.ATTEMPT_STATUS_COMPLETED}
    compute_seconds = [event.compute_duration.ToTimedelta().total_seconds() for event in events]
    assert all(seconds > 0 for seconds in compute_seconds)
    assert sum(compute_seconds) <= elapsed_seconds, "the engine's time was shared, not multiplied"
    await router.settled()


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
