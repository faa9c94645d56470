"""Requests at once: a caller whose last answer has ended has its place back, and no more run than the limit says."""

import asyncio
import os
from collections import Counter
from typing import Any

import grpc
import grpc.aio
import httpx2
import pytest
from uplion.inference.v1 import chat_pb2, inference_service_pb2_grpc

from bench.load import drive, request_bytes
from tests.chaos.held_streams import fates, hold
from tests.kit.platform import SYNTHETIC, Platform, Up
from tests.kit.until import until

_SECONDS = float(os.environ.get("UPLION_TEST_SECONDS", "2"))
_QUICK = {"model": "quick", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 3}
_MANIFEST = """apiVersion: model.youxam.com/v1alpha1
kind: AIModel
metadata: {name: %s}
spec: {type: local, model: none, engine: synthetic, maxProcessNum: 1000, synthetic: {%s}}
"""


@pytest.fixture(scope="module")
def two_of_each(start_platform: Up, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """Two authz and two routers, one model that answers at once and one that takes its time."""
    manifest = tmp_path_factory.mktemp("manifests") / "models.yaml"
    slow = "tokensPerSecond: 2, outputTokens: 40"
    manifest.write_text("---\n".join((_MANIFEST % ("quick", "outputTokens: 3"), _MANIFEST % (SYNTHETIC, slow))))
    return start_platform("-f", str(manifest), "--processes", "2")


def _key(platform: Platform, at_once: int) -> dict[str, Any]:
    created: dict[str, Any] = platform.cli("keys", "create", "--limit", f"concurrency={at_once}")
    return created


@pytest.mark.parametrize("at_once", [1, 4, 32])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", _QUICK),
        ("/chat/completions", {**_QUICK, "stream": True}),
        ("/embeddings", {"model": "quick", "input": "Hello!"}),
    ],
    ids=["whole", "stream", "embedding"],
)
async def test_as_many_callers_as_places_are_never_refused(
    two_of_each: Platform, at_once: int, path: str, body: dict[str, Any]
) -> None:
    key = await asyncio.to_thread(_key, two_of_each, at_once)
    base_url = two_of_each.facts["base_url"]
    request = request_bytes(base_url, path, key["key"], body)
    outcome = await drive(base_url, request, connections=at_once, seconds=_SECONDS)
    assert outcome.failures == 0
    assert len(outcome.latencies) > at_once


def test_an_error_gives_the_place_back_too(two_of_each: Platform) -> None:
    key = _key(two_of_each, 1)["key"]
    statuses: Counter[int] = Counter()
    bodies = (_QUICK, {**_QUICK, "max_tokens": -1}, {**_QUICK, "stream": True, "n": "many"}, {**_QUICK, "model": "no"})
    with httpx2.Client(headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
        for number in range(80):
            answer = client.post(f"{two_of_each.facts['base_url']}/chat/completions", json=bodies[number % 4])
            statuses[answer.status_code] += 1
    assert statuses == {200: 20, 400: 40, 404: 20}


async def test_native_calls_give_the_place_back_too(two_of_each: Platform) -> None:
    key = await asyncio.to_thread(_key, two_of_each, 1)
    metadata = (("authorization", f"Bearer {key['key']}"), ("x-uplion-model", "quick"))
    hello = [chat_pb2.ChatMessage(role="user", content="Hello!")]
    async with grpc.aio.insecure_channel(two_of_each.facts["grpc_address"]) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
        for _ in range(40):
            await stub.Chat(chat_pb2.ChatRequest(model="quick", messages=hello), metadata=metadata, timeout=60)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Chat(chat_pb2.ChatRequest(model="quick"), metadata=metadata, timeout=60)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            asked = chat_pb2.ChatStreamRequest(model="quick", messages=hello)
            assert [message async for message in stub.ChatStream(asked, metadata=metadata, timeout=60)]


async def test_who_went_away_in_the_middle_is_not_refused_either(two_of_each: Platform) -> None:
    key = await asyncio.to_thread(_key, two_of_each, 1)
    for _ in range(20):
        (stream,) = await hold(two_of_each.facts["base_url"], key["key"], SYNTHETIC, 1)
        await until(lambda each=stream: each.tokens or each.ended.is_set())  # type: ignore[misc]
        assert fates([stream]) == {"runs": 1}, stream.head
        stream.leave()


async def test_exactly_so_many_are_admitted(two_of_each: Platform) -> None:
    key = await asyncio.to_thread(_key, two_of_each, 16)
    streams = await hold(two_of_each.facts["base_url"], key["key"], SYNTHETIC, 64, each_second=20_000)
    try:
        await until(lambda: all(stream.head for stream in streams))
        assert fates(streams) == {"runs": 16, "refused": 48}
        assert {stream.head.split()[1] for stream in streams if not stream.began} == {"429"}
    finally:
        for stream in streams:
            stream.leave()
