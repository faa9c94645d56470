"""The native surface against a real router, NATS and worker protocol."""

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.dispatch.v1 import run_pb2
from uplion.inference.v1 import chat_pb2, completion_pb2, embedding_pb2, model_pb2, sampling_pb2
from uplion.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

STOP = sampling_pb2.FINISH_REASON_STOP
HELLO = [chat_pb2.ChatMessage(role="user", content="hi")]


def stub(world: Any) -> Any:
    return InferenceServiceStub(world.client.channel)


def details(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    raw = next(value for name, value in tuple(error.trailing_metadata() or ()) if name == "grpc-status-details-bin")
    for detail in Status.FromString(raw).details:
        found = kind()
        if detail.Unpack(found):
            return found
    return None


async def test_a_chat_at_once_and_piece_by_piece(world: Any) -> None:
    request = chat_pb2.ChatRequest(model=world.model, messages=HELLO, sampling=sampling_pb2.Sampling(choices=2))
    answer = await stub(world).Chat(request, metadata=world.client.metadata(request_id="r-1"))
    assert (answer.request_id, answer.model) == ("r-1", world.model)
    assert [choice.message.content for choice in answer.choices] == ["Hello wörld"] * 2
    assert [choice.finish_reason for choice in answer.choices] == [STOP] * 2
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 4)
    stream = stub(world).ChatStream(
        chat_pb2.ChatStreamRequest(model=world.model, messages=HELLO), metadata=world.client.metadata(request_id="r-2")
    )
    pieces = [piece async for piece in stream]
    assert {piece.request_id for piece in pieces} == {"r-2"}
    assert "".join(delta.content for piece in pieces for delta in piece.deltas) == "Hello wörld"
    assert pieces[-1].usage.output_tokens == 2
    assert not pieces[-1].deltas
    assert not any(piece.HasField("usage") for piece in pieces[:-1])


async def test_a_completion_at_once_and_piece_by_piece(world: Any) -> None:
    request = completion_pb2.CompletionRequest(model=world.model, prompt="say")
    answer = await stub(world).Completion(request, metadata=world.client.metadata())
    assert answer.choices[0].text == "Hello wörld"
    stream = stub(world).CompletionStream(
        completion_pb2.CompletionStreamRequest(model=world.model, prompt="say"), metadata=world.client.metadata()
    )
    pieces = [piece async for piece in stream]
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == "Hello wörld"
    assert pieces[-1].usage.input_tokens == 7


async def test_embeddings(start_world: Any) -> None:
    async def vectors(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        values = [run_pb2.Vector(values=struct.pack("<2f", 0.5, 1)) for _ in request.embedding.items]
        yield run_pb2.RunEvent(vectors=values, usage=sampling_pb2.TokenUsage(input_tokens=3))

    async with start_world(worker=False) as world:
        await world.start_worker(script=vectors)
        request = embedding_pb2.EmbedRequest(model=world.model, inputs=["a", "b"])
        answer = await stub(world).Embed(request, metadata=world.client.metadata())
        assert [list(embedding.values) for embedding in answer.embeddings] == [[0.5, 1.0]] * 2
        assert answer.usage.input_tokens == 3


async def test_models_are_paged(world: Any) -> None:
    names: list[str] = []
    token = ""
    while True:
        page = await stub(world).ListModels(
            model_pb2.ListModelsRequest(page_size=1, page_token=token), metadata=world.client.metadata(reservation="")
        )
        names += [model.name for model in page.models]
        token = page.next_page_token
        if not token:
            break
    assert world.model in names
    assert names == sorted(set(names))
    metadata = world.client.metadata(reservation="", models=("nothing-*",))
    assert not (await stub(world).ListModels(model_pb2.ListModelsRequest(), metadata=metadata)).models


@pytest.mark.parametrize(
    ("fields", "changes", "code", "reason"),
    [
        ({"messages": []}, {}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"model": "other"}, {}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"model": "no-such"}, {"model": "no-such"}, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        ({}, {"account": ""}, grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
    ],
)
async def test_a_refusal_is_a_status_with_its_reason(
    world: Any, fields: dict[str, Any], changes: dict[str, str], code: grpc.StatusCode, reason: str
) -> None:
    request = chat_pb2.ChatRequest(**{"model": world.model, "messages": HELLO, **fields})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(world).Chat(request, metadata=world.client.metadata(**changes))
    assert caught.value.code() is code
    assert details(caught.value, ErrorInfo).reason == reason
    stream_request = chat_pb2.ChatStreamRequest(**{"model": world.model, "messages": HELLO, **fields})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(world).ChatStream(stream_request, metadata=world.client.metadata(**changes)).read()
    assert caught.value.code() is code


async def test_a_loading_model_says_when_to_try_again(start_world: Any) -> None:
    async with start_world(worker=False, model_loading_seconds=0.1) as world:
        request = chat_pb2.ChatRequest(model=world.model, messages=HELLO)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(world).Chat(request, metadata=world.client.metadata())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert details(caught.value, ErrorInfo).reason == "MODEL_LOADING"
        assert details(caught.value, RetryInfo).retry_delay.seconds > 0
        assert (await world.one_usage()).last


async def test_the_callers_own_deadline_counts(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        request = chat_pb2.ChatRequest(model=world.model, messages=HELLO)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(world).Chat(request, timeout=1.5, metadata=world.client.metadata())
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        event = await world.one_usage()
        assert event.status in (billing.ATTEMPT_STATUS_TIMED_OUT, billing.ATTEMPT_STATUS_CANCELLED)


async def test_a_broken_stream_ends_with_a_status_and_never_with_ok(start_world: Any) -> None:
    async def broken(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        yield run_pb2.RunEvent(deltas=[run_pb2.Delta(parts=[run_pb2.Part(text="a")])])
        await asyncio.sleep(0.05)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    async with start_world(worker=False) as world:
        await world.start_worker(script=broken)
        stream = stub(world).ChatStream(
            chat_pb2.ChatStreamRequest(model=world.model, messages=HELLO), metadata=world.client.metadata()
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stream:
                pass
        assert details(caught.value, ErrorInfo).reason == "WORKER_LOST"
