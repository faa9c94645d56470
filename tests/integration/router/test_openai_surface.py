"""The OpenAI surface against a real router, NATS and worker protocol."""

import json
from typing import Any


def chat(model: str, **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def events(data: bytes) -> list[Any]:
    frames = data.decode().split("\n\n")
    assert frames[-1] == ""
    return [
        frame if frame == "data: [DONE]" or frame.startswith(":") else json.loads(frame.removeprefix("data: "))
        for frame in frames[:-1]
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


async def test_a_streamed_chat_ends_with_done_and_hides_usage_unless_asked(world: Any) -> None:
    status, _, data, kind = await world.client.post("CreateChatCompletion", chat(world.model, stream=True))
    assert (status, kind) == (200, "text/event-stream")
    found = events(data)
    assert found[-1] == "data: [DONE]"
    chunks = found[:-1]
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Hello wörld"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"
    assert len({chunk["id"] for chunk in chunks}) == 1
