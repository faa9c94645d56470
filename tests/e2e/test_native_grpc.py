"""The native API with the generated stubs, through the same listener and the same keys."""

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from uplion.inference.v1 import chat_pb2, completion_pb2, embedding_pb2, inference_service_pb2_grpc, model_pb2
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, Sampling

from tests.kit.platform import DEMO, SYNTHETIC, Platform

HELLO = [chat_pb2.ChatMessage(role="user", content="Hello!")]


@pytest.fixture
async def stub(platform: Platform) -> AsyncIterator[inference_service_pb2_grpc.InferenceServiceStub]:
    async with grpc.aio.insecure_channel(platform.facts["grpc_address"]) as channel:
        yield inference_service_pb2_grpc.InferenceServiceStub(channel)


def _as(platform: Platform, model: str, key: str | None = None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key or platform.facts['api_key']}"), ("x-uplion-model", model))


def _reason(error: grpc.aio.AioRpcError) -> str | None:
    for name, value in list(error.trailing_metadata()):
        if name == "grpc-status-details-bin":
            info = ErrorInfo()
            if Status.FromString(value).details[0].Unpack(info):
                return info.reason
    return None


async def test_chat_and_its_stream_agree(platform: Platform, stub) -> None:
    sampling = Sampling(temperature=0, max_output_tokens=60)
    answer = await stub.Chat(
        chat_pb2.ChatRequest(model=DEMO, messages=HELLO, sampling=sampling), metadata=_as(platform, DEMO), timeout=60
    )
    assert answer.choices[0].finish_reason == FINISH_REASON_STOP
    assert answer.request_id
    pieces = [
        piece
        async for piece in stub.ChatStream(
            chat_pb2.ChatStreamRequest(model=DEMO, messages=HELLO, sampling=sampling),
            metadata=_as(platform, DEMO),
            timeout=60,
        )
    ]
    text = "".join(delta.content for piece in pieces for delta in piece.deltas)
    assert text == answer.choices[0].message.content != ""
    assert pieces[-1].usage.output_tokens == answer.usage.output_tokens > 0
    assert not pieces[-1].deltas


async def test_completion_embedding_and_models(platform: Platform, stub) -> None:
    done = await stub.Completion(
        completion_pb2.CompletionRequest(model=SYNTHETIC, prompt="x", sampling=Sampling(max_output_tokens=5)),
        metadata=_as(platform, SYNTHETIC),
        timeout=60,
    )
    assert done.choices[0].finish_reason == FINISH_REASON_LENGTH
    assert done.usage.output_tokens == 5
    vectors = await stub.Embed(
        embedding_pb2.EmbedRequest(model=DEMO, inputs=["a", "b"]), metadata=_as(platform, DEMO), timeout=60
    )
    assert [vector.index for vector in vectors.embeddings] == [0, 1]
    assert sum(value**2 for value in vectors.embeddings[0].values) == pytest.approx(1, rel=1e-3)
    models = await stub.ListModels(model_pb2.ListModelsRequest(), metadata=_as(platform, ""), timeout=60)
    assert {DEMO, SYNTHETIC} <= {model.name for model in models.models}


async def test_errors_are_statuses_with_a_reason(platform: Platform, stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as unknown_model:
        await stub.Chat(chat_pb2.ChatRequest(model="none", messages=HELLO), metadata=_as(platform, "none"), timeout=60)
    assert unknown_model.value.code() is grpc.StatusCode.NOT_FOUND
    assert _reason(unknown_model.value) == "MODEL_NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as unknown_key:
        await stub.Chat(
            chat_pb2.ChatRequest(model=DEMO, messages=HELLO), metadata=_as(platform, DEMO, "upl_x"), timeout=60
        )
    assert unknown_key.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as mismatch:
        await stub.Chat(chat_pb2.ChatRequest(model=DEMO, messages=HELLO), metadata=_as(platform, SYNTHETIC), timeout=60)
    assert mismatch.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_admin_api_is_not_on_this_listener(platform: Platform) -> None:
    from uplion.control.v1 import key_pb2, key_service_pb2_grpc

    async with grpc.aio.insecure_channel(platform.facts["grpc_address"]) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await key_service_pb2_grpc.KeyServiceStub(channel).ListKeys(
                key_pb2.ListKeysRequest(),
                metadata=(("authorization", f"Bearer {platform.facts['admin_key']}"),),
                timeout=60,
            )
