"""The exact bytes of OpenAI answers: whole JSON objects, server-sent events, and HttpBody around both.

A stream's frames share everything but a few words, so a prefix is built once and each frame is a join of bytes.
"""

from array import array
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

from common.deltas import Delta
from common.error_dialects import error_body
from common.errors import UplionError
from common.operations import Dialect
from router.answers import Answer
from router.dispatch.jobs import Operation

_encode = msgspec.json.Encoder().encode

CONTENT_JSON: Final = "application/json"
CONTENT_STREAM: Final = "text/event-stream"
DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"

_FINISH: Final[dict[int, bytes]] = {FINISH_REASON_STOP: b'"stop"', FINISH_REASON_LENGTH: b'"length"'}
_FINISH_TEXT: Final[dict[int, str]] = {FINISH_REASON_STOP: "stop", FINISH_REASON_LENGTH: "length"}


def http_body(data: bytes, content_type: str = "") -> bytes:
    """google.api.HttpBody on the wire. In a stream only the first message needs the type: Envoy takes it from there."""
    head = b"\x0a" + _varint(len(content_type)) + content_type.encode() if content_type else b""
    return b"".join((head, b"\x12", _varint(len(data)), data))


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def answer_id(operation: Operation, request_id: str) -> str:
    """The `id` of an answer: the platform's request id under OpenAI's prefix."""
    return ("chatcmpl-" if operation is Operation.CHAT else "cmpl-") + request_id


def error_frame(error: UplionError) -> bytes:
    """What ends a stream whose status line is long gone: never silence, which would look like a network fault."""
    return b"data: " + error_body(Dialect.OPENAI, error, "") + b"\n\n" + DONE


class StreamFrames:
    """Writes the frames of one streamed chat or completion."""

    def __init__(
        self,
        operation: Operation,
        request_id: str,
        model: str,
        tier: str,
        created: int,
        *,
        choices: int = 1,
        include_usage: bool = False,
    ) -> None:
        chat = operation is Operation.CHAT
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = _encode(
            {
                "id": answer_id(operation, request_id),
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

    def deltas(self, deltas: Sequence[Delta], cut: BudgetCut | None = None) -> bytes:
        """One frame for each delta; the one that ends a choice also says which budget did, if one did."""
        return b"".join([self._frame(delta.index, delta.text, delta.finish_reason, cut) for delta in deltas])

    def _frame(self, index: int, text: str, finish: FinishReason.ValueType, cut: BudgetCut | None) -> bytes:
        if self._chat:
            if index not in self._begun:
                self._begun.add(index)
                delta = b',"delta":{"role":"assistant","content":' + _encode(text) + b'},"logprobs":null'
            elif text:
                delta = b',"delta":{"content":' + _encode(text) + b'},"logprobs":null'
            else:
                delta = b',"delta":{},"logprobs":null'
        else:
            delta = b',"text":' + _encode(text) + b',"logprobs":null'
        if finish:
            self._open.discard(index)
        end = _FINISH.get(finish, b"null")
        tail = self._tail
        if cut is not None and finish == FINISH_REASON_LENGTH:
            tail = tail[:-3] + b',"x-uplion":' + _encode(cut_object(cut)) + b"}\n\n"
        return b"".join((self._prefix, b'{"index":%d' % index, delta, b',"finish_reason":', end, b"}", tail))

    def end(self, usage: TokenUsage) -> bytes:
        """The usage frame where it was asked for, then [DONE]. A choice the engine never ended ends here."""
        rest = b"".join([self._frame(index, "", FINISH_REASON_STOP, None) for index in sorted(self._open)])
        if not self._include_usage:
            return rest + DONE
        return b"".join((rest, self._prefix, b'],"usage":', _encode(usage_object(usage)), b"}\n\n", DONE))


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


def whole_generation(
    operation: Operation,
    request_id: str,
    model: str,
    tier: str,
    created: int,
    answer: Answer,
    cut: BudgetCut | None = None,
) -> bytes:
    """The JSON of a chat or completion that was not streamed."""
    chat = operation is Operation.CHAT
    choices: list[dict[str, object]] = []
    for delta in answer.choices():
        choice: dict[str, object] = {"index": delta.index}
        if chat:
            choice["message"] = {"role": "assistant", "content": delta.text, "refusal": None}
        else:
            choice["text"] = delta.text
        choice["logprobs"] = None
        choice["finish_reason"] = _FINISH_TEXT.get(delta.finish_reason, "stop")
        choices.append(choice)
    body: dict[str, object] = {
        "id": answer_id(operation, request_id),
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": model,
        "choices": choices,
        "usage": usage_object(answer.usage),
        "service_tier": tier,
        "system_fingerprint": None,
    }
    if cut is not None:
        body["x-uplion"] = cut_object(cut)
    return _encode(body)


def embedding_list(model: str, answer: Answer, *, base64: bool) -> bytes:
    """The JSON of POST /v1/embeddings; `base64` as the official Python client asks by default."""
    entries = [
        {"object": "embedding", "index": index, "embedding": b64encode(raw).decode() if base64 else floats(raw)}
        for index, raw in enumerate(answer.vectors)
    ]
    tokens = answer.usage.input_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _encode({"object": "list", "data": entries, "model": model, "usage": usage})


def floats(raw: bytes) -> list[float]:
    """Little-endian float32 values, as workers send them (every platform we run on is little-endian)."""
    return array("f", raw).tolist()


def model_object(name: str, created: int) -> dict[str, object]:
    """One entry of GET /v1/models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "uplion"}


def model_json(name: str, created: int) -> bytes:
    return _encode(model_object(name, created))


def model_list_json(models: Sequence[tuple[str, int]]) -> bytes:
    return _encode({"object": "list", "data": [model_object(name, created) for name, created in models]})
