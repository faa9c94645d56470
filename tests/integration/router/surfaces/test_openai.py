"""The OpenAI surface against a real router, NATS and worker protocol."""

import gc
import json
import struct
import time
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from prometheus_client import REGISTRY, generate_latest
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.dispatch.v1 import run_pb2
from uplion.inference.v1 import sampling_pb2
from uplion.openai.v1.openai_service_pb2 import GetModelRequest

from common.errors import STATUS_DETAILS_METADATA, Reason, UplionError, from_rpc_error, grpc_status
from router.dispatch.jobs import Job
from router.dispatch.runs import Run
from tests.kit.until import until

CANARY = "canary-7f3a"
OURS = {"common", "router"}


def chat(model: str, **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def events(data: bytes) -> list[Any]:
    frames = data.decode().split("\n\n")
    assert frames.pop() == ""
    return [
        frame if frame == "data: [DONE]" or frame.startswith(":") else json.loads(frame.removeprefix("data: "))
        for frame in frames
    ]


async def test_a_chat_is_answered_as_one_json_object(world: Any) -> None:
    status, _, data, kind = await world.client.post("CreateChatCompletion", chat(world.model))
    assert (status, kind) == (200, "application/json")
    body = json.loads(data)
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Hello wörld", "refusal": None}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["prompt_tokens"] == 7
    assert body["usage"]["total_tokens"] == 9
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert body["system_fingerprint"] is None
    event = await world.one_usage()
    assert event.provider == "worker"
    assert len(world.usage) == 1


async def test_a_streamed_chat_ends_with_done_and_hides_usage_unless_asked(world: Any) -> None:
    status, _, data, kind = await world.client.post("CreateChatCompletion", chat(world.model, stream=True))
    assert (status, kind) == (200, "text/event-stream")
    *chunks, done = events(data)
    assert done == "data: [DONE]"
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hello wörld"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_a_streamed_chat_with_usage_and_several_choices(world: Any) -> None:
    body = chat(world.model, stream=True, n=3, stream_options={"include_usage": True})
    _, _, data, _ = await world.client.post("CreateChatCompletion", body)
    *chunks, usage, done = events(data)
    assert done == "data: [DONE]"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 6
    texts = {0: "", 1: "", 2: ""}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert set(texts.values()) == {"Hello wörld"}


async def test_a_legacy_completion_whole_and_streamed(world: Any) -> None:
    body = {"model": world.model, "prompt": ["say"], "max_tokens": 4}
    _, _, data, _ = await world.client.post("CreateCompletion", json.dumps(body).encode())
    answer = json.loads(data)
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == "Hello wörld"
    _, _, data, _ = await world.client.post("CreateCompletion", json.dumps({**body, "stream": True}).encode())
    *chunks, done = events(data)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello wörld"
    assert done == "data: [DONE]"


async def vectors(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
    items = request.embedding.items
    yield run_pb2.RunEvent(
        input_tokens=3,
        vectors=[run_pb2.Vector(values=struct.pack("<2f", index, 0.5)) for index in range(len(items))],
        usage=sampling_pb2.TokenUsage(input_tokens=3),
    )


async def test_embeddings_as_floats_and_base64_from_texts_and_tokens(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        await world.start_worker(script=vectors)
        body = {"model": world.model, "input": ["a", "b"]}
        _, _, data, _ = await world.client.post("CreateEmbedding", json.dumps(body).encode())
        assert [entry["embedding"] for entry in json.loads(data)["data"]] == [[0.0, 0.5], [1.0, 0.5]]
        body = {"model": world.model, "input": [[1, 2]], "encoding_format": "base64"}
        _, _, data, _ = await world.client.post("CreateEmbedding", json.dumps(body).encode())
        answer = json.loads(data)
        assert b64decode(answer["data"][0]["embedding"]) == struct.pack("<2f", 0, 0.5)
        assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


async def test_embeddings_of_much_text_are_read_with_signs_of_life(start_world: Any) -> None:
    async def slow(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        assert not request.once
        yield run_pb2.RunEvent()
        async for event in vectors(request, context):
            yield event

    async with start_world(worker=False) as world:
        await world.start_worker(script=slow)
        body = {"model": world.model, "input": ["many words " * 100] * 20}
        _, _, data, _ = await world.client.post("CreateEmbedding", json.dumps(body).encode())
        assert [entry["embedding"] for entry in json.loads(data)["data"]] == [[float(at), 0.5] for at in range(20)]


async def test_a_refused_request_is_freed_at_once(start_world: Any) -> None:
    async def refusing(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        too_long = UplionError(Reason.CONTEXT_LENGTH_EXCEEDED, "Too long.")
        details = grpc_status(too_long).SerializeToString()
        await context.abort(too_long.reason.grpc_code, too_long.message, (("grpc-status-details-bin", details),))
        yield run_pb2.RunEvent()

    async with start_world(worker=False) as world:
        await world.start_worker(script=refusing)
        bodies = [chat(world.model, **fields) for fields in ({}, {"max_tokens": 1}, {"stream": True})]
        for body in bodies:
            assert (await world.client.post("CreateChatCompletion", body))[0] in (200, 400)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for body in bodies:
                await world.client.post("CreateChatCompletion", body)
            gc.collect()
            cycles = [type(each) for each in gc.garbage]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not {Job, Run} & set(cycles), "a prompt of 3 MB would wait for the collector"


async def test_models_are_listed_and_shown(world: Any) -> None:
    _, _, data, _ = await world.client.post("ListModels", b"", reservation="")
    listed = json.loads(data)
    assert listed["object"] == "list"
    mine = next(model for model in listed["data"] if model["id"] == world.model)
    assert mine["object"] == "model"
    assert abs(mine["created"] - time.time()) < 60
    request = GetModelRequest(model=world.model).SerializeToString()
    status, _, data, _ = await world.client.post("GetModel", request, reservation="")
    assert (status, json.loads(data)) == (200, mine)
    request = GetModelRequest(model="who/is.this").SerializeToString()
    status, _, data, _ = await world.client.post("GetModel", request, reservation="")
    assert (status, json.loads(data)["error"]["code"]) == (404, "model_not_found")
    assert world.usage == []


async def test_models_that_a_key_may_not_use_do_not_exist_for_it(world: Any) -> None:
    request = GetModelRequest(model=world.model).SerializeToString()
    unknown = GetModelRequest(model="none").SerializeToString()
    for models, shown in (((), True), (("other", world.model[:3] + "*"), True), (("x*", "?"), False)):
        _, _, data, _ = await world.client.post("ListModels", b"", reservation="", models=models)
        assert (world.model in [model["id"] for model in json.loads(data)["data"]]) == shown
        status, _, data, _ = await world.client.post("GetModel", request, reservation="", models=models)
        assert status == (200 if shown else 404)
        if not shown:
            _, _, same, _ = await world.client.post("GetModel", unknown, reservation="", models=models)
            assert data == same.replace(b"none", world.model.encode())


@pytest.mark.parametrize(
    ("method", "fields", "said", "param"),
    [
        ("CreateEmbedding", {"input": [[9]]}, "prompt", "input"),
        ("CreateEmbedding", {"input": ["a"]}, "input[0]", "input[0]"),
        ("CreateEmbedding", {"input": ["a"]}, None, "input"),
        ("CreateCompletion", {"prompt": [9]}, "prompt", "prompt"),
        ("CreateCompletion", {"prompt": "a"}, None, "prompt"),
        ("CreateChatCompletion", {"messages": [{"role": "user", "content": "a"}]}, "prompt", "messages"),
        (
            "CreateChatCompletion",
            {"messages": [{"role": "user", "content": "a"}]},
            "messages[0].content",
            "messages[0].content",
        ),
        ("CreateChatCompletion", {"messages": [{"role": "user", "content": "a"}]}, "prompts", "prompts"),
    ],
)
async def test_what_a_worker_refuses_is_named_as_the_client_named_it(
    start_world: Any, method: str, fields: dict[str, Any], said: str | None, param: str
) -> None:
    error = UplionError(Reason.CONTEXT_LENGTH_EXCEEDED, "Too long.", param=said)

    async def refuse(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        details = ((STATUS_DETAILS_METADATA, grpc_status(error).SerializeToString()),)
        await context.abort(error.reason.grpc_code, error.message, trailing_metadata=details)
        yield run_pb2.RunEvent()

    async with start_world(worker=False) as world:
        await world.start_worker(script=refuse)
        status, _, data, _ = await world.client.post(method, json.dumps({"model": world.model, **fields}).encode())
        assert (status, json.loads(data)["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("body", "changes", "status", "code"),
    [
        (b"{", {}, 400, "invalid_value"),
        (b'{"model":"MODEL"}', {}, 400, "invalid_value"),
        (b'{"model":"MODEL","messages":[{"role":"user","content":"\xff"}]}', {}, 400, "invalid_value"),
        (b'{"model":"MODEL","messages":[{"role":"user","content":"x"}],"model":"other"}', {}, 400, "invalid_value"),
        (
            b'{"model":"MODEL","messages":[{"role":"user","content":"x"}],"tools":[{}]}',
            {},
            400,
            "unsupported_parameter",
        ),
        (
            b'{"model":"no-such","messages":[{"role":"user","content":"x"}]}',
            {"model": "no-such"},
            404,
            "model_not_found",
        ),
        (b"x" * ((4 << 20) + 1), {}, 413, "payload_too_large"),
    ],
    ids=["json", "messages", "utf8", "two-models", "tools", "model", "size"],
)
async def test_a_refusal_is_an_openai_error_and_one_usage_event(
    world: Any, body: bytes, changes: dict[str, str], status: int, code: str
) -> None:
    found: list[billing.UsageEvent] = world.usage

    async def on_usage(message: Any) -> None:
        found.append(billing.UsageEvent.FromString(message.data))

    if changes:
        await world.bus.subscribe("usage.none", cb=on_usage)  # no name that clients invent
        await world.bus.flush()
    body = body.replace(b"MODEL", world.model.encode())
    answered, headers, data, kind = await world.client.post("CreateChatCompletion", body, **changes)
    assert (answered, kind) == (status, "application/json")
    error = json.loads(data)["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}
    assert headers["x-should-retry"] == "false"
    event = await world.one_usage()
    assert (event.status, event.last) == (billing.ATTEMPT_STATUS_REFUSED, True)
    assert event.error_reason
    assert event.reservation == "res1"
    assert len(found) == 1


async def test_a_call_that_did_not_pass_authz_is_refused(world: Any) -> None:
    for method in ("CreateChatCompletion", "ListModels", "GetModel"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.client.post(method, b"", account="")
        assert from_rpc_error(caught.value).reason is Reason.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (UplionError(Reason.CONTEXT_LENGTH_EXCEEDED, "too long", param="messages"), 400, "context_length_exceeded"),
        (UplionError(Reason.UPSTREAM_FAILED, "no"), 502, "upstream_failed"),
        (UplionError(Reason.INTERNAL, "Internal error"), 500, "internal_error"),
    ],
)
async def test_a_workers_own_error_keeps_its_reason(
    start_world: Any, raised: UplionError, status: int, code: str
) -> None:
    async def refuse(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        details = grpc_status(raised).SerializeToString()
        await context.abort(raised.reason.grpc_code, raised.message, (("grpc-status-details-bin", details),))
        yield run_pb2.RunEvent()

    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=refuse)
        answered, _, data, _ = await world.client.post("CreateChatCompletion", chat(world.model))
        assert (answered, json.loads(data)["error"]["code"]) == (status, code)
        assert len(worker.runs) == 1
        await world.usage_published()
        assert world.usage == []  # such an attempt is the worker's to account for


async def test_workers_that_are_all_overloaded_end_in_one_last_event_from_the_router(start_world: Any) -> None:
    busy = UplionError(Reason.OVERLOADED, "The upstream is busy.", retry_after_seconds=1)

    async def refuse(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        details = grpc_status(busy).SerializeToString()
        await context.abort(busy.reason.grpc_code, busy.message, (("grpc-status-details-bin", details),))
        yield run_pb2.RunEvent()

    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=refuse)
        status, _, data, _ = await world.client.post("CreateChatCompletion", chat(world.model))
        assert (status, json.loads(data)["error"]["code"]) == (503, "overloaded")
        assert [run.ticket.attempt for run in worker.runs] == [1, 2, 3]
        event = await world.one_usage()  # the three are the workers' to account for, and none of them is the last
        assert (event.attempt, event.last, event.error_reason) == (4, True, "OVERLOADED")


async def test_our_own_bug_shows_nothing_but_the_request_id(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr("router.surfaces.openai.service.frames.whole_answer", broken)
    status, headers, data, _ = await world.client.post("CreateChatCompletion", chat(world.model), request_id="req-9")
    assert status == 500
    assert CANARY not in data.decode() + str(headers)
    assert "req-9" in json.loads(data)["error"]["message"]


@pytest.mark.parametrize("where", ["relay.StreamBuffer.put", "openai.service.frames.StreamFrames.deltas"])
async def test_our_own_bug_in_a_stream_is_an_error_too(world: Any, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(f"router.surfaces.{where}", broken)
    body = chat(world.model, stream=True)
    status, headers, data, _ = await world.client.post("CreateChatCompletion", body, request_id=world.model)
    assert status == 500
    assert CANARY not in data.decode() + str(headers)
    assert json.loads(data)["error"]["message"] == f"Internal error; request {world.model}."


async def test_the_prompt_is_in_no_ticket_log_or_usage_event(
    start_world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with start_world(worker=False) as world:
        worker = await world.start_worker()
        seen: list[bytes] = []

        async def on_message(message: Any) -> None:
            seen.append(message.data)

        await world.bus.subscribe("tasks.>", cb=on_message)
        await world.bus.subscribe("usage.>", cb=on_message)
        await world.bus.flush()
        messages = [{"role": "user", "content": CANARY}]
        await world.client.post("CreateChatCompletion", chat(world.model, messages=messages))
        await world.client.post("CreateChatCompletion", chat(world.model, messages=messages, n=99))
        await until(lambda: len(world.usage) == 2)
        assert CANARY.encode() in worker.runs[0].chat.messages_json
        assert seen
        assert CANARY.encode() not in b"".join(seen)
        lines = [record for record in caplog.records if record.getMessage() == "request"]
        assert [vars(line)["status"] for line in lines] == ["ok", "UNSUPPORTED_PARAMETER"]
        assert vars(lines[0])["output_tokens"] == 2
        assert CANARY not in str([vars(record) for record in caplog.records if record.name.split(".")[0] in OURS])


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_a_request_is_counted_once_under_labels_of_bounded_sets(world: Any) -> None:
    labels = {"surface": "openai", "operation": "chat", "model": world.model, "status": "ok"}
    await world.client.post("CreateChatCompletion", chat(world.model))
    await world.client.post("CreateChatCompletion", chat("no-such"), model="no-such")
    await until(lambda: count("uplion_router_requests_total", **labels) == 1)
    timing = {"gen_ai_operation_name": "chat", "gen_ai_request_model": world.model}
    assert count("gen_ai_server_request_duration_seconds_count", **timing) == 1
    assert count("gen_ai_server_time_to_first_token_seconds_count", **timing) == 1
    assert count("uplion_router_queue_seconds_count", model=world.model) == 1
    assert b"no-such" not in generate_latest()
    assert count("uplion_router_requests_in_flight") == 0
