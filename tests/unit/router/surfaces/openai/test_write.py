"""The bytes of OpenAI answers."""

import json
import struct
from base64 import b64decode
from typing import Any

import pytest
from uplion.dispatch.v1.run_pb2 import RunRequest
from uplion.inference.v1.sampling_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_UNSPECIFIED,
    BudgetCut,
    FinishReason,
    TokenUsage,
)

from common.deltas import Delta, Part, Reasoning, Refusal, ToolCall
from common.errors import Reason, UplionError
from common.identity import Identity
from common.operations import Capability
from router.dispatch.jobs import Job
from router.dispatch.runs import AnswerEvent
from router.surfaces.openai import write as frames
from router.surfaces.response_buffers import WholeAnswer

IDENTITY = Identity("acme", "key1", "res1", "m", "default", 100, 60.0, "r1")
OPEN = FINISH_REASON_UNSPECIFIED
USAGE = TokenUsage(input_tokens=5, cached_tokens=2, output_tokens=3, reasoning_tokens=1)
USAGE_JSON = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def new(index: int, text: str, finish_reason: "FinishReason.ValueType" = OPEN) -> Delta:
    return Delta(index, [text] if text else [], [], finish_reason)


def stream(capability: Capability = Capability.CHAT, **options: Any) -> frames.StreamFrames:
    return frames.StreamFrames(capability, "r1", 'm"x', "default", 1700000000, **options)


def job(capability: Capability = Capability.CHAT) -> Job:
    return Job(IDENTITY, capability, "m", RunRequest(), choices=1, estimated_tokens=1)


def decoded(data: bytes) -> list[Any]:
    parts = data.decode().split("\n\n")
    assert parts.pop() == ""
    return [part if part == "data: [DONE]" else json.loads(part.removeprefix("data: ")) for part in parts]


def test_the_first_delta_carries_the_role_and_the_last_the_reason() -> None:
    written = stream()
    data = written.deltas([new(0, 'a"\n\u2028é😀', OPEN)]) + written.deltas([new(0, "b", OPEN)])
    data += written.deltas([new(0, "", FINISH_REASON_LENGTH)]) + written.end(USAGE)
    first, second, third, done = decoded(data)
    assert first["id"] == "chatcmpl-r1"
    assert first["object"] == "chat.completion.chunk"
    assert first["model"] == 'm"x'
    assert first["created"] == 1700000000
    assert first["system_fingerprint"] is None
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": 'a"\n\u2028é😀'}
    assert first["choices"][0]["finish_reason"] is None
    assert second["choices"][0]["delta"] == {"content": "b"}
    assert third["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert done == "data: [DONE]"
    assert "usage" not in first


def test_usage_is_null_until_its_own_chunk_when_asked_for() -> None:
    written = stream(include_usage=True)
    data = written.deltas([new(0, "a", FINISH_REASON_STOP)]) + written.end(USAGE)
    chunk, usage, done = decoded(data)
    assert chunk["usage"] is None
    assert usage["choices"] == []
    assert usage["usage"] == USAGE_JSON
    assert done == "data: [DONE]"


@pytest.mark.parametrize("include_usage", [False, True])
def test_the_chunk_that_a_budget_ended_says_which(include_usage: bool) -> None:
    written = stream(choices=2, include_usage=include_usage)
    cut = BudgetCut(limit="key/tokens/day", max_output_tokens=9)
    deltas = [new(0, "a", OPEN), new(0, "b", FINISH_REASON_STOP), new(1, "", FINISH_REASON_LENGTH)]
    *chunks, done = decoded(written.deltas(deltas, cut) + written.end(USAGE))
    detail = {"reason": "budget", "limit": "key/tokens/day", "max_output_tokens": 9}
    assert [chunk.get("x-uplion") for chunk in chunks[:3]] == [None, None, detail]
    assert chunks[2]["choices"][0]["finish_reason"] == "length"
    assert chunks[2].get("usage", "none") == (None if include_usage else "none")
    assert len(chunks) == 3 + include_usage
    assert done == "data: [DONE]"


def test_an_answer_without_any_token_still_has_a_chunk_for_each_choice() -> None:
    *chunks, done = decoded(stream(choices=2).end(TokenUsage()))
    assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 1]
    assert all(chunk["choices"][0]["finish_reason"] == "stop" for chunk in chunks)
    assert done == "data: [DONE]"


def test_each_choice_has_its_own_role_and_frame() -> None:
    chunks = decoded(stream(choices=2).deltas([new(0, "a", OPEN), new(1, "b", OPEN)]))
    assert [(c["choices"][0]["index"], c["choices"][0]["delta"]["role"]) for c in chunks] == [
        (0, "assistant"),
        (1, "assistant"),
    ]


def test_legacy_chunks_carry_text() -> None:
    chunk, *_ = decoded(stream(Capability.COMPLETION).deltas([new(0, "a", FINISH_REASON_STOP)]))
    assert chunk["object"] == "text_completion"
    assert chunk["id"] == "cmpl-r1"
    assert chunk["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": "stop"}]


def test_an_error_after_the_headers_is_a_frame_and_then_done() -> None:
    body, done = decoded(frames.error_frame(UplionError(Reason.WORKER_LOST, "gone")))
    assert body["error"] == {"message": "gone", "type": "server_error", "param": None, "code": "worker_lost"}
    assert done == "data: [DONE]"


def test_whole_answers() -> None:
    answer = WholeAnswer(2)
    answer.add(AnswerEvent(deltas=[new(0, "a"), new(1, "c"), new(9, "?")]))
    answer.add(AnswerEvent(deltas=[new(0, "b", FINISH_REASON_STOP)]))
    answer.add(AnswerEvent(deltas=[new(1, "", FINISH_REASON_LENGTH)], usage=USAGE))
    body = json.loads(frames.whole_generation(job(Capability.CHAT), answer, 1))
    assert [choice["message"]["content"] for choice in body["choices"]] == ["ab", "c"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "length"]
    assert body["usage"] == USAGE_JSON
    legacy = json.loads(frames.whole_generation(job(Capability.COMPLETION), answer, 1))
    assert [choice["text"] for choice in legacy["choices"]] == ["ab", "c"]
    assert legacy["object"] == "text_completion"


def test_embeddings_as_floats_and_as_base64() -> None:
    raw = struct.pack("<3f", 0.5, -1.0, 0.25)
    answer = WholeAnswer(0)
    answer.add(AnswerEvent(vectors=[raw], usage=TokenUsage(input_tokens=4)))
    plain = json.loads(frames.embedding_list("m", answer, base64=False))
    assert plain["data"] == [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0, 0.25]}]
    assert plain["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    packed = json.loads(frames.embedding_list("m", answer, base64=True))
    assert b64decode(packed["data"][0]["embedding"]) == raw


def typed(*parts: Part, finish_reason: "FinishReason.ValueType" = OPEN, index: int = 0) -> Delta:
    return Delta(index, list(parts), [], finish_reason)


def choices(data: bytes) -> list[Any]:
    return [chunk["choices"][0] for chunk in decoded(data)]


def test_reasoning_and_refusal_have_fields_of_their_own() -> None:
    written = stream()
    data = written.deltas([typed(Reasoning("why"))]) + written.deltas([typed(Reasoning(" not"), "so")])
    data += written.deltas([typed("!", finish_reason=FINISH_REASON_STOP)])
    assert [choice["delta"] for choice in choices(data)] == [
        {"role": "assistant", "content": None, "reasoning_content": "why"},
        {"content": "so", "reasoning_content": " not"},
        {"content": "!"},
    ]
    refusal = choices(stream().deltas([typed(Refusal("No."), finish_reason=FINISH_REASON_STOP)]))[0]
    assert refusal["delta"] == {"role": "assistant", "content": None, "refusal": "No."}
    assert refusal["finish_reason"] == "stop"


def test_tool_calls_begin_with_id_and_name_and_end_with_their_own_reason() -> None:
    written = stream()
    data = written.deltas([typed("Let me see.")])
    data += written.deltas([typed(ToolCall(0, "call_1", "find", '{"a'), ToolCall(1, "call_2", "list"))])
    data += written.deltas([typed(ToolCall(0, arguments='": 1}'))])
    data += written.deltas([typed(finish_reason=FINISH_REASON_STOP)])
    first, begun, more, last = choices(data)
    assert first["delta"] == {"role": "assistant", "content": "Let me see."}
    assert begun["delta"]["tool_calls"] == [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"a'}},
        {"index": 1, "id": "call_2", "type": "function", "function": {"name": "list", "arguments": ""}},
    ]
    assert more["delta"] == {"tool_calls": [{"index": 0, "function": {"arguments": '": 1}'}}]}
    assert last == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}


def test_a_token_limit_in_a_tool_call_is_still_a_token_limit() -> None:
    delta = typed(ToolCall(0, "c", "f", "{"), finish_reason=FINISH_REASON_LENGTH)
    (choice,) = choices(stream().deltas([delta]))
    assert choice["delta"]["content"] is None
    assert choice["finish_reason"] == "length"


def test_other_choices_do_not_end_with_the_reason_of_one_that_calls_tools() -> None:
    written = stream(choices=2)
    written.deltas([typed(ToolCall(0, "c", "f", "{}")), typed("x", index=1)])
    *ended, _ = decoded(written.end(USAGE))
    assert [chunk["choices"][0]["finish_reason"] for chunk in ended] == ["tool_calls", "stop"]


def test_a_frame_of_this_dialect_passes_as_it_is() -> None:
    frame = b'data: {"choices":[{"index":0,"delta":{"content":"\xc3\xa4"},"finish_reason":"stop"}],"x":1}\n\n'
    for capability in (Capability.CHAT, Capability.COMPLETION):
        written = stream(capability)
        assert written.deltas([typed(frame, frame, finish_reason=FINISH_REASON_STOP)]) == frame * 2
        assert written.end(USAGE) == frames.DONE


def test_the_first_and_the_last_delta_may_be_empty() -> None:
    written = stream()
    data = written.deltas([typed()]) + written.deltas([typed("")]) + written.deltas([typed()])
    assert [choice["delta"] for choice in choices(data)] == [{"role": "assistant", "content": ""}, {}, {}]


def whole(*parts: Part, finish_reason: "FinishReason.ValueType" = FINISH_REASON_STOP) -> Any:
    answer = WholeAnswer(1)
    for part in parts:
        answer.add(AnswerEvent(deltas=[typed(part)]))
    answer.add(AnswerEvent(deltas=[typed(finish_reason=finish_reason)], usage=USAGE))
    return json.loads(frames.whole_generation(job(), answer, 1))["choices"][0]


def test_a_whole_message_holds_every_kind_of_part() -> None:
    calls = (ToolCall(0, "c1", "f", '{"a":'), ToolCall(1, "c2", "g", "{}"), ToolCall(0, arguments="1}"))
    choice = whole(Reasoning("a"), Reasoning("b"), "text", *calls)
    assert choice["message"] == {
        "role": "assistant",
        "content": "text",
        "refusal": None,
        "reasoning_content": "ab",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
            {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }
    assert choice["finish_reason"] == "tool_calls"
    assert whole(Refusal("No."))["message"] == {"role": "assistant", "content": None, "refusal": "No."}
    assert whole("x")["message"] == {"role": "assistant", "content": "x", "refusal": None}
    cut = whole(*calls[:1], finish_reason=FINISH_REASON_LENGTH)
    assert (cut["message"]["content"], cut["finish_reason"]) == (None, "length")


def test_a_whole_body_of_this_dialect_passes_as_it_is() -> None:
    assert whole(b'{"choices":[{"index":0,"x":1}]}') == {"index": 0, "x": 1}
