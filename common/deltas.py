"""Deltas: what is new of each choice of an answer, in typed parts, and the merging of those that wait for a reader.

Workers merge what the router has not read yet, routers what the client has not; both with the same class. The forms on
the wire are `Delta` and `Part` of `uplion/dispatch/v1/run.proto`.
"""

from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from uplion.dispatch.v1 import run_pb2
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_UNSPECIFIED, FinishReason


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text of the model's reasoning, which is no part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Text of a refusal to answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call, or more of one: the first part of an index has `id` and `name`, later ones append to `arguments`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""  # JSON text


# Answer text is a plain `str`, since most parts are and an answer has thousands. `bytes` are one frame that is
# already in the caller's dialect.
Part: TypeAlias = str | Reasoning | Refusal | ToolCall | bytes


@dataclass(slots=True)
class Delta:
    """What is new of one choice. Whoever is handed a delta owns its sequences and may change them."""

    index: int  # of the choice, from 0
    parts: list[Part]
    token_ids: MutableSequence[int]
    finish_reason: FinishReason.ValueType = FINISH_REASON_UNSPECIFIED  # unspecified: the choice goes on
    log_probabilities: MutableSequence[run_pb2.TokenLogProbability] | None = None  # None: none were asked for

    @property
    def text(self) -> str:
        """The answer text among the parts."""
        parts = self.parts
        if len(parts) == 1 and isinstance(parts[0], str):
            return parts[0]
        return "".join([part for part in parts if isinstance(part, str)])


class Deltas:
    """Merges deltas until they are taken: then there is one for each choice, however many were added.

    Neighbouring parts of one kind become one part, and neighbouring tool call parts one for each index; frames in the
    caller's dialect stay frames. Order is kept, and a finish reason, once set, stays.
    """

    __slots__ = ("_merged", "_unjoined", "size")

    def __init__(self) -> None:
        self._merged: dict[int, Delta] = {}
        self._unjoined = False  # some delta consists of several
        self.size = 0  # characters of text and bytes of frames that wait to be taken

    def __bool__(self) -> bool:
        return bool(self._merged)

    def add(self, delta: Delta) -> None:
        """Takes the delta over."""
        for part in delta.parts:
            self.size += len(part) if type(part) is str else _size(part)
        merged = self._merged.setdefault(delta.index, delta)
        if merged is delta:
            return
        self._unjoined = True
        merged.parts += delta.parts  # joined when they are taken: joining here would copy all text for each token
        merged.token_ids.extend(delta.token_ids)
        if delta.finish_reason:
            merged.finish_reason = delta.finish_reason
        if delta.log_probabilities:
            if merged.log_probabilities is None:
                merged.log_probabilities = delta.log_probabilities
            else:
                merged.log_probabilities.extend(delta.log_probabilities)

    def take(self) -> list[Delta]:
        """Everything that waits, in the order in which the choices were first added to."""
        if not self._merged:
            return []
        taken = list(self._merged.values())
        self._merged.clear()
        self.size = 0
        if self._unjoined:
            self._unjoined = False
            for delta in taken:
                if len(delta.parts) > 1:
                    delta.parts = _joined(delta.parts)
        return taken


def from_message(message: run_pb2.Delta) -> Delta:
    """A delta of a run event. Its log probabilities are the message's own."""
    parts = message.parts
    return Delta(
        message.index,
        [_part(parts[0])] if len(parts) == 1 else [_part(part) for part in parts],  # iterating takes 0.3 us more
        message.token_ids[:],
        message.finish_reason,
        message.log_probabilities or None,
    )


def to_message(delta: Delta, message: run_pb2.Delta) -> None:
    """Writes a delta into a run event's empty one: made elsewhere and copied there, it would cost twice as much."""
    message.index = delta.index
    message.token_ids.extend(delta.token_ids)
    for part in delta.parts:
        written = message.parts.add()
        if isinstance(part, str):
            written.text = part
        elif isinstance(part, Reasoning):
            written.reasoning = part.text
        elif isinstance(part, Refusal):
            written.refusal = part.text
        elif isinstance(part, ToolCall):
            call = written.tool_call
            call.index, call.id, call.name, call.arguments = part.index, part.id, part.name, part.arguments
        else:
            written.raw = part
    if delta.finish_reason:
        message.finish_reason = delta.finish_reason
    if delta.log_probabilities:
        message.log_probabilities.extend(delta.log_probabilities)


def _part(message: run_pb2.Part) -> Part:
    """The typed part; one of a kind that this version does not know is empty answer text."""
    kind = message.WhichOneof("content")
    if kind == "text":
        return message.text
    if kind == "reasoning":
        return Reasoning(message.reasoning)
    if kind == "refusal":
        return Refusal(message.refusal)
    if kind == "tool_call":
        call = message.tool_call
        return ToolCall(call.index, call.id, call.name, call.arguments)
    if kind == "raw":
        return message.raw
    return ""


def _size(part: Part) -> int:
    if isinstance(part, (str, bytes)):
        return len(part)
    if isinstance(part, ToolCall):
        return len(part.id) + len(part.name) + len(part.arguments)
    return len(part.text)


def _joined(parts: list[Part]) -> list[Part]:
    try:
        return ["".join(parts)]  # type: ignore[arg-type]  # nearly always: nothing but answer text
    except TypeError:
        pass
    joined: list[Part] = []
    for kind, run in groupby(parts, type):
        if kind is bytes:
            joined += run
        elif kind is ToolCall:
            joined += _joined_calls(part for part in run if isinstance(part, ToolCall))
        elif kind is str:
            joined.append("".join([part for part in run if isinstance(part, str)]))
        else:
            text = "".join(part.text for part in run if isinstance(part, (Reasoning, Refusal)))
            joined.append(Reasoning(text) if kind is Reasoning else Refusal(text))
    return joined


def _joined_calls(parts: Iterable[ToolCall]) -> list[ToolCall]:
    """One part for each index, in the order of their first parts."""
    by_index: dict[int, list[ToolCall]] = {}
    for part in parts:
        by_index.setdefault(part.index, []).append(part)
    return [
        ToolCall(
            index,
            next((part.id for part in same if part.id), ""),
            next((part.name for part in same if part.name), ""),
            "".join([part.arguments for part in same]),
        )
        for index, same in by_index.items()
    ]
