"""The exact bytes of OpenAI answers: whole JSON objects and server-sent events.

A stream's frames share everything but a few words, so a prefix is built once and each frame is a join of bytes. A part
that is already a frame of this dialect passes as it is.
"""

from base64 import b64encode
from collections.abc import Sequence
from typing import Final

import msgspec
from uplion.inference.v1.sampling_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    BudgetCut,
    FinishReason,
    TokenUsage,
)

from common.deltas import Delta, Part, Reasoning, Refusal, ToolCall
from common.error_dialects import error_body
from common.errors import UplionError
from common.operations import Capability, Dialect
from router.dispatch.jobs import Job
from router.surfaces.openai.parse import OpenAIRequest
from router.surfaces.response_buffers import WholeAnswer, floats

_encode = msgspec.json.Encoder().encode

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"

_FINISH: Final[dict[int, str]] = {FINISH_REASON_STOP: "stop", FINISH_REASON_LENGTH: "length"}
_FINISH_JSON: Final[dict[int, bytes]] = {reason: _encode(word) for reason, word in _FINISH.items()}
_TOOL_CALLS: Final = "tool_calls"  # the finish reason of a choice that stopped to have tools called


def answer_id(capability: Capability, request_id: str) -> str:
    """The `id` of an answer: the platform's request id under OpenAI's prefix."""
    return ("chatcmpl-" if capability is Capability.CHAT else "cmpl-") + request_id


def error_frame(error: UplionError) -> bytes:
    """What ends a stream whose status line is long gone: never silence, which would look like a network fault."""
    return b"data: " + error_body(Dialect.OPENAI, error, "") + b"\n\n" + DONE


class StreamFrames:
    """Writes the frames of one streamed chat or completion."""

    def __init__(
        self,
        capability: Capability,
        request_id: str,
        model: str,
        tier: str,
        created: int,
        *,
        choices: int = 1,
        include_usage: bool = False,
    ) -> None:
        chat = capability is Capability.CHAT
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = _encode(
            {
                "id": answer_id(capability, request_id),
                "object": kind,
                "created": created,
                "model": model,
                "service_tier": tier,
                "system_fingerprint": None,
            }
        )
        self._chat = chat
        self._prefix = b"data: " + head[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._include_usage = include_usage
        self._begun: set[int] = set()  # choices whose role was sent
        self._open = set(range(choices))  # choices without a finish reason
        self._calling: set[int] = set()  # choices that call tools

    def deltas(self, deltas: Sequence[Delta], cut: BudgetCut | None = None) -> bytes:
        """One frame for each delta; the one that ends a choice also says which budget did, if one did."""
        return b"".join([self._delta(delta, cut) for delta in deltas])

    def _delta(self, delta: Delta, cut: BudgetCut | None) -> bytes:
        index, parts, finish = delta.index, delta.parts, delta.finish_reason
        if finish:
            self._open.discard(index)
        if len(parts) == 1 and type(part := parts[0]) is str:  # nearly all
            content = self._text(index, part)
        elif frames := b"".join([part for part in parts if isinstance(part, bytes)]):
            self._begun.add(index)
            return frames  # they say all that there is to say, the finish reason too
        elif self._chat:
            content = b',"delta":' + _encode(self._delta_object(index, parts))
        else:
            content = self._text(index, delta.text)
        return self._frame(index, content, finish, cut)

    def _text(self, index: int, text: str) -> bytes:
        if not self._chat:
            return b',"text":' + _encode(text)
        if index not in self._begun:
            self._begun.add(index)
            return b',"delta":{"role":"assistant","content":' + _encode(text) + b"}"
        return b',"delta":{"content":' + _encode(text) + b"}" if text else b',"delta":{}'

    def _delta_object(self, index: int, parts: Sequence[Part]) -> dict[str, object]:
        message = _Content(parts)
        found: dict[str, object] = {}
        if index not in self._begun:
            self._begun.add(index)
            found["role"] = "assistant"
            found["content"] = None if message.others else message.text
        if message.text:
            found["content"] = message.text
        if message.reasoning:
            found["reasoning_content"] = message.reasoning
        if message.refusal:
            found["refusal"] = message.refusal
        if message.calls:
            self._calling.add(index)
            found["tool_calls"] = [_call_delta(call) for call in message.calls]
        return found

    def _frame(self, index: int, content: bytes, finish: FinishReason.ValueType, cut: BudgetCut | None) -> bytes:
        end, tail = b"null", self._tail
        if finish:
            called = finish == FINISH_REASON_STOP and index in self._calling
            end = _encode(_TOOL_CALLS) if called else _FINISH_JSON.get(finish, b"null")
            if cut is not None and finish == FINISH_REASON_LENGTH:
                tail = tail[:-3] + b',"x-uplion":' + _encode(cut_object(cut)) + b"}\n\n"
        return b"".join(
            (self._prefix, b'{"index":%d' % index, content, b',"logprobs":null,"finish_reason":', end, b"}", tail)
        )

    def end(self, usage: TokenUsage) -> bytes:
        """The usage frame where it was asked for, then [DONE]. A choice the engine never ended ends here."""
        rest = self.deltas([Delta(index, [], [], FINISH_REASON_STOP) for index in sorted(self._open)])
        if not self._include_usage:
            return rest + DONE
        return b"".join((rest, self._prefix, b'],"usage":', _encode(usage_object(usage)), b"}\n\n", DONE))


class _Content:
    """The parts of a message, sorted by kind."""

    __slots__ = ("calls", "reasoning", "refusal", "text")

    def __init__(self, parts: Sequence[Part]) -> None:
        self.text = "".join([part for part in parts if isinstance(part, str)])
        self.reasoning = "".join([part.text for part in parts if isinstance(part, Reasoning)])
        self.refusal = "".join([part.text for part in parts if isinstance(part, Refusal)])
        self.calls = [part for part in parts if isinstance(part, ToolCall)]

    @property
    def others(self) -> bool:
        """Whether there is anything but answer text."""
        return bool(self.reasoning or self.refusal or self.calls)


def _call_delta(call: ToolCall) -> dict[str, object]:
    """The first delta of a call has its id and name; later ones append to the arguments."""
    if not call.id:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _whole_calls(calls: Sequence[ToolCall]) -> list[dict[str, object]]:
    """One object for each call, however many parts it came in."""
    found: dict[int, tuple[dict[str, object], dict[str, str]]] = {}
    for call in calls:
        if call.index in found:
            found[call.index][1]["arguments"] += call.arguments
        else:
            function = {"name": call.name, "arguments": call.arguments}
            found[call.index] = ({"id": call.id, "type": "function", "function": function}, function)
    return [entry for entry, _ in found.values()]


def whole_answer(request: OpenAIRequest, answer: WholeAnswer, created: int, cut: BudgetCut | None = None) -> bytes:
    """The body of an answer that is not streamed."""
    job = request.job
    if job.capability is Capability.EMBEDDING:
        return embedding_list(job.model, answer, base64=request.base64)
    return whole_generation(job, answer, created, cut)


def usage_object(usage: TokenUsage) -> dict[str, object]:
    """The `usage` of chats and completions."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def cut_object(cut: BudgetCut) -> dict[str, object]:
    """The `x-uplion` of an answer that a budget ended: beside OpenAI's own fields, which its SDKs keep as an extra."""
    return {"reason": "budget", "limit": cut.limit, "max_output_tokens": cut.max_output_tokens}


def whole_generation(job: Job, answer: WholeAnswer, created: int, cut: BudgetCut | None = None) -> bytes:
    """The JSON of a chat or completion that was not streamed."""
    deltas = answer.choices()
    passed = b"".join([part for delta in deltas for part in delta.parts if isinstance(part, bytes)])
    if passed:
        return passed  # the whole body, as an engine that speaks this dialect wrote it
    chat = job.capability is Capability.CHAT
    body: dict[str, object] = {
        "id": answer_id(job.capability, job.identity.request_id),
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": job.model,
        "choices": [_choice(delta, chat=chat) for delta in deltas],
        "usage": usage_object(answer.usage),
        "service_tier": job.identity.tier,
        "system_fingerprint": None,
    }
    if cut is not None:
        body["x-uplion"] = cut_object(cut)
    return _encode(body)


def _choice(delta: Delta, *, chat: bool) -> dict[str, object]:
    choice: dict[str, object] = {"index": delta.index}
    finish = _FINISH.get(delta.finish_reason, "stop")
    if chat:
        content = _Content(delta.parts)
        message: dict[str, object] = {"role": "assistant", "content": content.text, "refusal": content.refusal or None}
        if not content.text and (content.refusal or content.calls):
            message["content"] = None
        if content.reasoning:
            message["reasoning_content"] = content.reasoning
        if content.calls:
            message["tool_calls"] = _whole_calls(content.calls)
            finish = _TOOL_CALLS if finish == "stop" else finish
        choice["message"] = message
    else:
        choice["text"] = delta.text
    choice["logprobs"] = None
    choice["finish_reason"] = finish
    return choice


def embedding_list(model: str, answer: WholeAnswer, *, base64: bool) -> bytes:
    """The JSON of POST /v1/embeddings; `base64` as the official Python client asks by default."""
    entries = [
        {"object": "embedding", "index": index, "embedding": b64encode(raw).decode() if base64 else floats(raw)}
        for index, raw in enumerate(answer.vectors)
    ]
    tokens = answer.usage.input_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _encode({"object": "list", "data": entries, "model": model, "usage": usage})


def model_object(name: str, created: int) -> dict[str, object]:
    """One entry of GET /v1/models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "uplion"}


def model_json(name: str, created: int) -> bytes:
    return _encode(model_object(name, created))


def model_list_json(models: Sequence[tuple[str, int]]) -> bytes:
    return _encode({"object": "list", "data": [model_object(name, created) for name, created in models]})
