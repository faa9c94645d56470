"""The events of an upstream's stream, as typed deltas of the answer."""

import msgspec
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, FINISH_REASON_UNSPECIFIED

from common.deltas import Delta, Part, Reasoning, Refusal, ToolCall
from common.errors import Reason, UplionError
from inference.engines.output import Output

_DONE = "[DONE]"


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same, as newer servers call it
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int | None = None
    delta: _Delta | None = None  # of a chat
    text: str | None = None  # of a completion
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """The tokens that the upstream counted."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: object = None


_decode = msgspec.json.Decoder(_Event, strict=False).decode


class Answer:
    """Writes the stream's events to a request's output. Raises UPSTREAM_FAILED for a stream that makes no sense."""

    def __init__(self, output: Output, choices: int) -> None:
        self._output = output
        self._open = set(range(choices))  # those without a finish reason
        self._counted = False  # by the upstream
        self.done = False

    def take(self, data: str) -> None:
        """The data of one event."""
        if data.strip() == _DONE:
            self.done = True
            return
        try:
            event = _decode(data)
        except msgspec.ValidationError as problem:
            raise upstream_failed("sent an event that is no part of an answer") from problem
        except msgspec.DecodeError as problem:
            raise upstream_failed("sent an event that is not JSON") from problem
        if event.error:
            raise upstream_failed("broke off with an error")
        for choice in event.choices or ():
            self._add(choice)
        if event.usage is not None:
            self._count(event.usage)

    def finish(self) -> None:
        """The stream has ended: the answer is complete, or broken off."""
        if self._open:
            raise upstream_failed("broke off in the middle of the answer")
        self._output.end()

    def _add(self, choice: _Choice) -> None:
        index = choice.index or 0
        parts: list[Part] = [choice.text] if choice.text else []
        if choice.delta is not None:
            parts += _parts(choice.delta)
        finish_reason = FINISH_REASON_UNSPECIFIED
        if choice.finish_reason is not None:
            finish_reason = FINISH_REASON_LENGTH if choice.finish_reason == "length" else FINISH_REASON_STOP
        if index not in self._open or not (parts or finish_reason):
            return
        if parts and not self._counted:
            self._output.output_tokens += 1  # nearly: most upstreams send a token at a time
        if finish_reason:
            self._open.discard(index)
        self._output.add(Delta(index, parts, [], finish_reason))

    def _count(self, usage: Usage) -> None:
        self._counted = True
        details = usage.prompt_tokens_details
        cached_tokens = (details.cached_tokens or 0) if details is not None else 0
        self._output.begin(usage.prompt_tokens or 0, cached_tokens)
        self._output.output_tokens = usage.completion_tokens or 0


def _parts(delta: _Delta) -> list[Part]:
    """What the delta appends, in the order in which models generate it."""
    parts: list[Part] = []
    if reasoning := delta.reasoning_content or delta.reasoning:
        parts.append(Reasoning(reasoning))
    if delta.refusal:
        parts.append(Refusal(delta.refusal))
    if delta.content:
        parts.append(delta.content)
    for call in delta.tool_calls or ():
        function = call.function or _Function()
        parts.append(ToolCall(call.index, call.id or "", function.name or "", function.arguments or ""))
    return parts


def upstream_failed(what: str) -> UplionError:
    """The upstream's fault: "The model's upstream <what>."."""
    return UplionError(Reason.UPSTREAM_FAILED, f"The model's upstream {what}.")
