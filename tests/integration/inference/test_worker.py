"""A worker against a real NATS, with the synthetic engine: what it answers, and what it meters."""

import asyncio
import gc
import time

import grpc
import pytest
from uplion.billing.v1.usage_event_pb2 import AttemptStatus
from uplion.dispatch.v1.run_pb2 import EmbeddingInput, RunEvent, RunRequest, TextInput, TokenArray
from uplion.inference.v1.sampling_pb2 import FinishReason

from common.deltas import from_message
from common.errors import Reason, from_rpc_error
from inference.engines.engine import Generation
from inference.engines.synthetic import SyntheticEngine
from tests.kit.fake_router import WAIT_SECONDS

SLOW = {"outputTokens": 10_000, "tokensPerSecond": 100}


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


async def test_a_request_that_takes_long_to_begin_gives_signs_of_life_and_ends_with_its_call(start_worker, monkeypatch):
    monkeypatch.setattr("inference.service._SIGN_SECONDS", 0.01)
    gate, left = asyncio.Event(), asyncio.Event()
    embed = SyntheticEngine.embed

    async def slow(self, *arguments):
        try:
            await gate.wait()
        except asyncio.CancelledError:
            left.set()
            raise
        return await embed(self, *arguments)

    monkeypatch.setattr(SyntheticEngine, "embed", slow)
    router = (await start_worker()).router
    items = [TextInput(text="one two three")] * 2000
    request, other = (RunRequest(ticket=router.ticket(), embedding=EmbeddingInput(items=items)) for _ in range(2))
    call, cancelled = await router.open(request), await router.open(other)
    assert await call.read() == await cancelled.read() == RunEvent()
    cancelled.cancel()
    async with asyncio.timeout(WAIT_SECONDS):
        await left.wait()
    gate.set()
    while (answer := await call.read()) == RunEvent():
        pass
    assert await call.read() is grpc.aio.EOF
    assert len(answer.vectors) == 2000
    assert answer.input_tokens == answer.usage.input_tokens == 8000
    for each, status in ((request, "COMPLETED"), (other, "CANCELLED")):
        usage = await router.usage(each.ticket.request_id)
        assert usage.status == AttemptStatus.Value(f"ATTEMPT_STATUS_{status}")
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


async def test_a_refused_request_is_freed_at_once(start_worker):
    router = (await start_worker(contextLength=10)).router

    async def refused():
        call = await router.open(router.chat("word " * 100))
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()

    await refused()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            await refused()
        await router.settled()
        gc.collect()
        cycles = [type(each) for each in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert cycles
    assert not {RunRequest, Generation} & set(cycles), "four texts of 3 MB would wait for the collector"


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
