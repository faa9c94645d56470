"""The seam between the worker and what makes tokens: requests in, steps out."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from uplion.inference.v1.sampling_pb2 import FINISH_REASON_UNSPECIFIED, FinishReason

from common.deltas import Delta, Deltas
from common.errors import Reason, UplionError
from common.sampling import Sampling


class Capability(Enum):
    """Something an engine can do."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation to answer: OpenAI message objects, already checked by the router."""

    messages: Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Text:
    """A text to continue or to embed."""

    text: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """The same, as the model's own tokens."""

    ids: Sequence[int]


Prompt = Chat | Text | Tokens


@dataclass(frozen=True, slots=True)
class Generation:
    """One attempt to answer a request."""

    id: str  # unique in this process: the attempt's id
    prompt: Prompt
    sampling: Sampling
    resume: tuple[tuple[int, ...], ...] = ()  # tokens an earlier attempt delivered, for each choice


@dataclass(frozen=True, slots=True)
class Vectors:
    """The answer to an embedding request."""

    values: list[bytes]  # little-endian float32, of unit length, in the order of the inputs
    input_tokens: int
    compute_seconds: float | None = None  # of the engine's time; None: not known


@dataclass(frozen=True, slots=True)
class EngineStats:
    """How busy an engine is."""

    queued: int = 0  # wait for their prefill
    running: int = 0
    cache_use: float | None = None  # 0 to 1; None: no cache, or not known


class Output:
    """One request's way out of the engine: counts all it made, and merges what the reader has not taken yet.

    The engine calls `begin`, `add` and `end` (or `fail`) on the event loop, once for each step; one reader awaits
    `take`. What waits here is bounded by the request's token limit, however slow the reader is.
    """

    __slots__ = (
        "_changed",
        "_deltas",
        "_over",
        "cached_tokens",
        "compute_seconds",
        "ended",
        "error",
        "finish_reason",
        "first_token_seconds",
        "input_tokens",
        "output_tokens",
    )

    def __init__(self) -> None:
        self._deltas = Deltas()
        self._changed: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] | None = None
        self.first_token_seconds = 0.0  # unix time; 0: none yet
        self.input_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.compute_seconds: float | None = None  # of the engine's time, shared with others; None: not known
        self.finish_reason: FinishReason.ValueType = FINISH_REASON_UNSPECIFIED  # of the first choice
        self.ended = False
        self.error: Exception | None = None

    def begin(self, input_tokens: int, cached_tokens: int = 0) -> None:
        """The prompt was counted; `cached_tokens` may be told later, with another call."""
        self.input_tokens, self.cached_tokens = input_tokens, cached_tokens

    def add(self, delta: Delta) -> None:
        """One choice went on. The text of a delta is exactly what its token ids say, except after a stop text."""
        self.output_tokens += len(delta.token_ids)
        if not self.first_token_seconds:
            self.first_token_seconds = time.time()
        if delta.finish_reason and delta.index == 0:
            self.finish_reason = delta.finish_reason
        self._deltas.add(delta)
        self._wake()

    def end(self) -> None:
        """Every choice has finished."""
        self.ended = True
        self._wake()
        _resolve(self._over)

    def fail(self, error: Exception) -> None:
        """The engine gives up on this request."""
        if not self.ended:
            self.error = error
            self.end()

    async def take(self) -> list[Delta]:
        """Everything new since the last call; an empty list only after the end. Raises what the engine failed with."""
        while not self._deltas and not self.ended:
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
        if self._deltas:
            return self._deltas.take()
        if self.error is not None:
            raise self.error
        return []

    async def over(self, within_seconds: float | None) -> None:
        """Returns when it has ended, or after so long; None waits for the end."""
        if self.ended:
            return
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        timer = None if within_seconds is None else loop.call_later(within_seconds, _resolve, self._over)
        try:
            await self._over
        finally:
            if timer is not None:
                timer.cancel()

    @property
    def drained(self) -> bool:
        """It ended well, and all of it was taken."""
        return self.ended and self.error is None and not self._deltas

    def _wake(self) -> None:
        _resolve(self._changed)


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class Engine(Protocol):
    """What a worker runs. All methods are called on the event loop."""

    provider: str  # for the ledger: the engine's name, or the upstream's
    capabilities: frozenset[Capability]
    context_tokens: int  # prompt and answer together; 0: not known

    async def start(self) -> None:
        """Returns when the model is loaded and has made its first step."""

    async def failure(self) -> Exception:
        """Returns why the engine cannot go on; waits for ever while it can."""

    async def generate(self, generation: Generation, output: Output) -> None:
        """Accepts the request (steps follow on `output`), or raises UplionError before anything was computed."""

    async def embed(self, attempt_id: str, inputs: Sequence[Text | Tokens]) -> Vectors:
        """Embeds the inputs; cancelling the call stops it."""

    def cancel(self, attempt_id: str) -> None:
        """Stops within a step and says nothing more about the request; unknown ids are fine."""

    def stats(self) -> EngineStats: ...

    async def close(self) -> None:
        """Ends the engine; what still runs is dropped."""


def output_limit(sampling: Sampling, input_tokens: int, context_tokens: int) -> int:
    """How many tokens a choice may have: what was asked, cut to the room in the context; raises when there is none."""
    room = context_tokens - input_tokens
    if room < 1:
        raise UplionError(
            Reason.CONTEXT_LENGTH_EXCEEDED,
            f"This model's context holds {context_tokens} tokens and the prompt has {input_tokens}; "
            "shorten the prompt so that there is room for an answer.",
            context_tokens=context_tokens,
            input_tokens=input_tokens,
        )
    return room if sampling.max_output_tokens is None else min(room, sampling.max_output_tokens)
