"""Finding a worker, losing one, giving up: what the client sees and what the meter is told."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import nats.errors
import pytest
from google.api.httpbody_pb2 import HttpBody
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.dispatch.v1 import run_pb2
from uplion.dispatch.v1.worker_state_pb2 import CAPABILITY_CHAT
from uplion.inference.v1 import sampling_pb2

from common.operations import Operation
from router.surfaces.base import CallLifecycle, caller

STOP = sampling_pb2.FINISH_REASON_STOP


def chat(model: str, **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def code(data: bytes) -> str:
    return str(json.loads(data)["error"]["code"])


def text(data: bytes) -> str:
    frames = [json.loads(frame[6:]) for frame in data.decode().split("\n\n") if frame.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for frame in frames for choice in frame.get("choices", []))


def one(said: str, token: int, *, finish: bool = False) -> run_pb2.RunEvent:
    delta = run_pb2.Delta(index=0, parts=[run_pb2.Part(text=said)], token_ids=[token])
    if finish:
        delta.finish_reason = STOP
    return run_pb2.RunEvent(deltas=[delta], input_tokens=7)


def done(output_tokens: int) -> run_pb2.RunEvent:
    return run_pb2.RunEvent(usage=sampling_pb2.TokenUsage(input_tokens=7, output_tokens=output_tokens))


async def forever(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
    yield one("Hello", 1)
    await asyncio.sleep(3600)


async def silent(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
    await asyncio.sleep(3600)
    yield done(0)


async def vanish_at_once(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
    """As a killed process looks from the router: the stream breaks without a status of ours."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    yield done(0)


def dies_after_two_tokens(then: str = " again", *, ids: bool = True) -> Any:
    async def script(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        if request.ticket.attempt == 1:
            yield one("Hello", 11)
            event = one(" there", 12)
            if not ids:
                del event.deltas[0].token_ids[:]
            yield event
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        yield one(then, 13, finish=True)
        yield done(1)

    return script


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
        await world.until(lambda: worker.cancelled)


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


async def test_a_client_that_leaves_mid_stream_stops_the_worker(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=forever)
        call = world.client.open("CreateChatCompletion", chat(world.model, stream=True))
        await call.read()
        call.cancel()
        await world.until(lambda: worker.cancelled)
        event = await world.one_usage()
        assert (event.status, event.provider) == (billing.ATTEMPT_STATUS_CANCELLED, "worker")


async def test_a_client_that_leaves_before_the_first_token_stops_the_worker(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=silent)
        call = world.client.open("CreateChatCompletion", chat(world.model))
        reading = asyncio.create_task(call.read())
        await world.until(lambda: worker.runs)
        call.cancel()
        await asyncio.wait([reading])
        await world.until(lambda: worker.cancelled)


async def test_a_worker_lost_before_its_first_token_is_replaced_unseen(start_world: Any) -> None:
    async def once(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        if request.ticket.attempt == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        yield one("fine", 1, finish=True)
        yield done(1)

    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=once)
        status, _, data, _ = await world.client.post("CreateChatCompletion", chat(world.model))
        assert status == 200
        assert json.loads(data)["choices"][0]["message"]["content"] == "fine"
        assert [run.ticket.attempt for run in worker.runs] == [1, 2]
        assert not worker.runs[1].resume
        await world.until(lambda: len(world.usage) == 2)
        lost = next(event for event in world.usage if event.attempt == 1)
        assert (lost.status, lost.last) == (billing.ATTEMPT_STATUS_WORKER_LOST, False)
        assert not lost.usage.output_tokens


async def test_a_killed_worker_process_is_a_lost_worker(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        first = await world.start_worker(script=silent)
        asking = asyncio.create_task(world.client.post("CreateChatCompletion", chat(world.model)))
        await world.until(lambda: first.runs)
        await first.kill()
        await world.start_worker()
        status, *_ = await asking
        assert status == 200


async def test_a_stream_goes_on_where_the_lost_worker_stopped(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=dies_after_two_tokens())
        body = chat(world.model, stream=True, stream_options={"include_usage": True})
        _, _, data, _ = await world.client.post("CreateChatCompletion", body)
        assert text(data) == "Hello there again"
        assert data.count(b'"role"') == 1
        assert data.endswith(b"data: [DONE]\n\n")
        assert [list(array.ids) for array in worker.runs[1].resume] == [[11, 12]]
        first, second = worker.runs
        assert (first.chat, first.sampling) == (second.chat, second.sampling)
        assert not first.resume
        usage = json.loads(data.decode().split("\n\n")[-3][6:])["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7, 3)
        await world.until(lambda: len(world.usage) == 2)
        billed = sum(event.usage.output_tokens for event in world.usage)
        assert billed == 3
        assert sum(event.usage.input_tokens for event in world.usage) == 7
        assert {event.attempt for event in world.usage if event.last} == {2}


@pytest.mark.parametrize("case", ["no ids", "no capability"])
async def test_a_stream_that_cannot_go_on_ends_with_an_error_frame(start_world: Any, case: str) -> None:
    async with start_world(worker=False) as world:
        capabilities = (CAPABILITY_CHAT,) if case == "no capability" else (1, 2, 3, 4)
        worker = await world.start_worker(script=dies_after_two_tokens(ids=case != "no ids"), capabilities=capabilities)
        _, _, data, _ = await world.client.post("CreateChatCompletion", chat(world.model, stream=True))
        *_, error, end, empty = data.decode().split("\n\n")
        assert json.loads(error[6:])["error"]["code"] == "worker_lost"
        assert (end, empty) == ("data: [DONE]", "")
        assert len(worker.runs) == 1
        event = await world.one_usage()
        assert (event.status, event.last) == (billing.ATTEMPT_STATUS_WORKER_LOST, True)
        assert event.usage.input_tokens == 7
        assert event.usage.output_tokens in (1, 2)


async def test_a_worker_lost_after_the_last_token_changes_nothing_for_the_client(start_world: Any) -> None:
    async def no_usage(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        yield one("all of it", 1, finish=True)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    async with start_world(worker=False) as world:
        await world.start_worker(script=no_usage)
        status, _, data, _ = await world.client.post(
            "CreateChatCompletion", chat(world.model, max_tokens=1000), max_output_tokens=None
        )
        body = json.loads(data)
        assert (status, body["choices"][0]["message"]["content"]) == (200, "all of it")
        assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (7, 1)
        event = await world.one_usage()
        assert (event.status, event.last) == (billing.ATTEMPT_STATUS_COMPLETED, True)
        assert (event.usage.input_tokens, event.usage.output_tokens) == (7, 1)


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


async def test_a_short_answer_is_asked_for_in_one_event_and_begins_anew_elsewhere(start_world: Any) -> None:
    async def script(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        yield one("Hello", 11)
        if request.ticket.attempt == 1 and request.once:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        yield one(" there", 12, finish=True)
        yield done(2)

    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=script)
        status, _, data, _ = await world.client.post("CreateChatCompletion", chat(world.model, max_tokens=8))
        body = json.loads(data)
        assert (status, body["choices"][0]["message"]["content"]) == (200, "Hello there")
        assert body["usage"]["completion_tokens"] == 2
        assert [(run.once, list(run.resume)) for run in worker.runs] == [(True, []), (True, [])]
        await world.until(lambda: len({event.attempt for event in world.usage}) == 2, 30.0)
        assert {event.attempt: event.usage.output_tokens for event in world.usage} == {1: 0, 2: 2}
        await world.client.post("CreateChatCompletion", chat(world.model, max_tokens=8, stream=True))
        await world.client.post("CreateChatCompletion", chat(world.model, max_tokens=1000), max_output_tokens=None)
        assert [run.once for run in worker.runs[2:]] == [False, False]


async def test_a_client_that_leaves_a_short_answer_stops_the_worker(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=forever)
        call = world.client.open("CreateChatCompletion", chat(world.model, max_tokens=8))
        await world.until(lambda: worker.runs, 30.0)
        assert worker.runs[0].once
        call.cancel()
        await world.until(lambda: worker.cancelled, 30.0)
        assert (await world.one_usage()).status == billing.ATTEMPT_STATUS_CANCELLED


@pytest.mark.parametrize("recovers", [True, False])
async def test_a_whole_answers_lost_parts_count_only_when_it_became_whole(start_world: Any, recovers: bool) -> None:
    async def script(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        if request.ticket.attempt == 1 or not recovers:
            yield one("Hello", 11)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        yield one(" again", 12, finish=True)
        yield done(1)

    async with start_world(worker=False) as world:
        await world.start_worker(script=script)
        long = chat(world.model, max_tokens=1000)
        status, headers, data, _ = await world.client.post("CreateChatCompletion", long, max_output_tokens=None)
        attempts = 2 if recovers else 3
        await world.until(lambda: len({event.attempt for event in world.usage}) == attempts, 30.0)
        counted = {event.attempt: event.usage.output_tokens for event in world.usage}
        if recovers:
            assert (status, counted) == (200, {1: 1, 2: 1})
            assert json.loads(data)["usage"]["completion_tokens"] == 2
        else:
            assert (status, counted) == (502, {1: 0, 2: 0, 3: 0})
            assert headers["x-should-retry"] == "true"


async def test_three_lost_workers_are_enough(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=vanish_at_once)
        status, _, data, _ = await world.client.post("CreateChatCompletion", chat(world.model))
        assert (status, code(data)) == (502, "worker_lost")
        assert [run.ticket.attempt for run in worker.runs] == [1, 2, 3]
        await world.until(lambda: len(world.usage) == 3)
        assert [(event.attempt, event.last) for event in world.usage] == [(1, False), (2, False), (3, True)]


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


async def test_a_worker_that_falls_silent_is_lost(start_world: Any) -> None:
    async with start_world(worker=False, worker_idle_seconds=1.5, attempts=1) as world:
        worker = await world.start_worker(script=forever)
        _, _, data, _ = await world.client.post("CreateChatCompletion", chat(world.model, stream=True))
        assert "worker_lost" in data.decode()
        assert data.endswith(b"data: [DONE]\n\n")
        await world.until(lambda: worker.cancelled)
        await world.until(lambda: any(event.provider != "worker" for event in world.usage))
        own = [event for event in world.usage if event.provider != "worker"]
        assert [(event.status, event.usage.output_tokens) for event in own] == [(billing.ATTEMPT_STATUS_WORKER_LOST, 1)]


async def test_a_worker_whose_process_is_stopped_is_lost_although_its_connection_stands(start_world: Any) -> None:
    async with start_world(worker=False, worker_keepalive_seconds=1.5) as world:
        worker = await world.start_worker(script=forever, proxied=True)
        messages = aiter(world.client.open("CreateChatCompletion", chat(world.model, stream=True)))
        data = b""
        while b"Hello" not in data:
            data += HttpBody.FromString(await anext(messages)).data
        worker.task.cancel()
        await worker.bus._client.close()
        worker.proxy.stall()

        async def goes_on(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
            yield one(" again", 2, finish=True)
            yield done(1)

        second = await world.start_worker(script=goes_on)
        async with asyncio.timeout(60):
            async for message in messages:
                data += HttpBody.FromString(message).data
        assert text(data) == "Hello again"
        assert [list(array.ids) for array in second.runs[0].resume] == [[1]]
        worker.proxy.resume()


async def test_the_first_offer_wins_and_later_ones_are_refused(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=forever)
        call = world.client.open("CreateChatCompletion", chat(world.model, stream=True))
        await call.read()
        await worker.offer(worker.offered[0])
        await world.until(lambda: worker.refused)
        assert len(worker.runs) == 1
        call.cancel()
        await world.until(lambda: worker.cancelled)
        await worker.offer(worker.offered[0])
        await world.until(lambda: len(worker.refused) == 2)


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
        await world.until(lambda: len(worker.runs) == 8)
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
        admitted.append(caller(context).request_id)
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
        await world.until(lambda: {event.request_id for event in world.usage if event.last} >= set(admitted))
        assert len(admitted) >= 51
        assert len(admitted) == len(set(admitted))


async def last_usage(world: Any) -> Any:
    """The newest event in the stream: after a restart a plain subscriber may come back later than the router."""
    async with asyncio.timeout(60):
        while True:
            try:
                found = await world.bus.js.get_last_msg("USAGE", f"usage.{world.model}")
                if b"UNAVAILABLE" in found.data:
                    return found
            except (nats.errors.Error, TimeoutError):
                pass
            await asyncio.sleep(0.05)


async def test_nats_away_is_a_quick_503_and_the_usage_event_comes_later(start_world: Any, start_server: Any) -> None:
    server = await asyncio.to_thread(start_server, "nats")
    async with start_world(url=server.url, publish_seconds=0.9) as world:
        async with asyncio.timeout(60):
            while (await world.client.post("CreateChatCompletion", chat(world.model)))[0] != 200:
                pass
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
        await world.until(lambda: worker.runs)
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
        await world.until(lambda: world.bus.reconnects)
        await world.bus.ensure_streams()
        await world.start_worker()
        status, *_ = await asyncio.wait_for(asking, 60)
        assert status == 200
