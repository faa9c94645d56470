"""An answer that a budget's rest ended says so, on every surface; one that ended for another reason does not."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from uplion.dispatch.v1 import run_pb2
from uplion.inference.v1 import chat_pb2, completion_pb2, sampling_pb2
from uplion.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from tests.kit.scripted_worker import word

_RULE = "key/tokens/day"
_DETAIL = {"reason": "budget", "limit": _RULE, "max_output_tokens": 3}
_CAPPED = {"max_output_tokens": 3, "capped_by": _RULE}
_HELLO = [{"role": "user", "content": "hi"}]


async def talkative(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
    """Words until the limit, as an engine makes them; the prompt says how many tokens it is worth."""
    text = request.completion.text or json.loads(request.chat.messages_json)[-1]["content"]
    prompt = int(text) if text.isdigit() else 7
    limit = min(request.sampling.max_output_tokens or 20, 2048 - prompt, 20)
    yield run_pb2.RunEvent(input_tokens=prompt)
    for number in range(limit):
        last = number == limit - 1
        finish = sampling_pb2.FINISH_REASON_LENGTH if limit < 20 else sampling_pb2.FINISH_REASON_STOP
        yield run_pb2.RunEvent(deltas=[word(0, "a", number + 1, finish=finish if last else 0)])
    yield run_pb2.RunEvent(usage=sampling_pb2.TokenUsage(input_tokens=prompt, output_tokens=limit))


@pytest.fixture
async def world(start_world: Any) -> AsyncIterator[Any]:
    async with start_world(worker=False) as running:
        await running.start_worker(script=talkative)
        yield running


async def ask(world: Any, fields: dict[str, Any], **identity: Any) -> tuple[str, int, Any]:
    """Finish reason, tokens and detail, asked whole and streamed: both must agree."""
    completion = "prompt" in fields
    method = "CreateCompletion" if completion else "CreateChatCompletion"
    body = {"model": world.model, **({} if completion else {"messages": _HELLO}), **fields}
    _, _, data, _ = await world.client.post(method, json.dumps(body).encode(), **identity)
    answer = json.loads(data)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    _, _, data, _ = await world.client.post(method, json.dumps({**body, **options}).encode(), **identity)
    *frames, done = data.decode().strip().split("\n\n")
    assert done == "data: [DONE]"
    *chunks, usage = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    assert all("x-uplion" not in chunk for chunk in (*chunks[:-1], usage))
    assert usage["usage"] == answer["usage"]
    found = chunks[-1]["choices"][0]["finish_reason"], usage["usage"]["completion_tokens"], chunks[-1].get("x-uplion")
    assert found == (
        answer["choices"][0]["finish_reason"],
        answer["usage"]["completion_tokens"],
        answer.get("x-uplion"),
    )
    return found


async def test_an_answer_that_a_budget_ends_names_the_rule(world: Any) -> None:
    assert await ask(world, {}, **_CAPPED) == ("length", 3, _DETAIL)
    assert await ask(world, {"max_tokens": 10}, **_CAPPED) == ("length", 3, _DETAIL)
    assert await ask(world, {"prompt": "hi"}, **_CAPPED) == ("length", 3, _DETAIL)


@pytest.mark.parametrize(
    ("fields", "identity", "finish", "tokens"),
    [
        ({"max_tokens": 2}, _CAPPED, "length", 2),  # the client's own limit came first
        ({}, {"max_output_tokens": 3}, "length", 3),  # a cap that is no budget's
        ({}, {"max_output_tokens": 50, "capped_by": _RULE}, "stop", 20),  # the model ended before it
        ({"messages": [{"role": "user", "content": "2046"}]}, _CAPPED, "length", 2),  # the context did
    ],
    ids=["client", "other cap", "model", "context"],
)
async def test_an_answer_that_ends_for_another_reason_says_nothing(
    world: Any, fields: dict[str, Any], identity: dict[str, Any], finish: str, tokens: int
) -> None:
    assert await ask(world, fields, **identity) == (finish, tokens, None)


async def test_the_native_surface_has_a_field_for_it(world: Any) -> None:
    stub: Any = InferenceServiceStub(world.client.channel)
    chat = {"model": world.model, "messages": [chat_pb2.ChatMessage(role="user", content="hi")]}
    completion = {"model": world.model, "prompt": "hi"}
    expected = sampling_pb2.BudgetCut(limit=_RULE, max_output_tokens=3)

    def metadata() -> Any:
        return world.client.metadata(**_CAPPED)

    assert (await stub.Chat(chat_pb2.ChatRequest(**chat), metadata=metadata())).budget_cut == expected
    request = completion_pb2.CompletionRequest(**completion)
    assert (await stub.Completion(request, metadata=metadata())).budget_cut == expected
    for stream in (
        stub.ChatStream(chat_pb2.ChatStreamRequest(**chat), metadata=metadata()),
        stub.CompletionStream(completion_pb2.CompletionStreamRequest(**completion), metadata=metadata()),
    ):
        *pieces, last = [piece async for piece in stream]
        assert last.budget_cut == expected
        assert not any(piece.HasField("budget_cut") for piece in pieces)
    free = await stub.Chat(chat_pb2.ChatRequest(**chat), metadata=world.client.metadata())
    assert not free.HasField("budget_cut")
