"""The engine `synthetic`: answers of stated length at a stated rate, without a model.

For tests, benchmarks and capacity planning; never a default. Its text is always the same for the same request, its
tokens are words, and it imports no torch, so that its worker starts at once.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from uplion.inference.v1.sampling_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_UNSPECIFIED,
    FinishReason,
)

from common.deltas import Delta
from common.manifest import Synthetic
from inference.engines.engine import (
    Capability,
    EngineStats,
    Generation,
    Prompt,
    Text,
    Tokens,
    Vectors,
    check_embedding_tokens,
    output_limit,
)
from inference.engines.output import Output
from inference.engines.stopping import StopScanner
from inference.engines.vectors import unit_vector

STEP_SECONDS = 0.01  # all requests advance together, so tokens are late by at most this
CHARACTERS_PER_TOKEN = 4
VECTOR_VALUES = 64
DEFAULT_CONTEXT_TOKENS = 131_072
_SENTENCES = (
    "These words come from the synthetic engine of Uplion . It has no model : it answers every request with the same "
    "text , at the rate and of the length that its manifest states , so that everything around a model can be tested "
    "and measured alone ."
)
TOKENS = tuple(word if word in ".:," else " " + word for word in _SENTENCES.split())


@dataclass(slots=True, eq=False)
class _Choice:
    """One of a request's answers."""

    index: int
    resumed: int  # tokens of an earlier attempt
    made: int  # tokens that exist, the resumed ones included
    limit: int
    scanner: StopScanner | None
    finish_reason: FinishReason.ValueType = FINISH_REASON_UNSPECIFIED


@dataclass(slots=True, eq=False)
class _Answer:
    """A request that is answered."""

    output: Output
    choices: list[_Choice]
    finish_reason: FinishReason.ValueType
    started_seconds: float


class SyntheticEngine:
    """Advances all requests on one timer; none has a task of its own."""

    provider = "synthetic"
    capabilities = frozenset(Capability)

    def __init__(self, options: Synthetic, context_tokens: int | None) -> None:
        self._options = options
        self.context_tokens = context_tokens or DEFAULT_CONTEXT_TOKENS
        self._answers: dict[str, _Answer] = {}
        self._stepped_seconds = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Nothing to load."""

    async def failure(self) -> Exception:
        """Never returns, since it never fails."""
        failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        return await failed

    async def generate(self, generation: Generation, output: Output) -> None:
        input_tokens = token_count(generation.prompt)
        limit = output_limit(generation.sampling, input_tokens, self.context_tokens)
        length = min(limit, self._options.outputTokens)
        resumed = [len(ids) for ids in generation.resume] or [0] * generation.sampling.choices
        stop = generation.sampling.stop
        answer = _Answer(
            output=output,
            choices=[
                _Choice(index, count, count, length, StopScanner(stop) if stop else None)
                for index, count in enumerate(resumed)
            ],
            finish_reason=FINISH_REASON_STOP if length == self._options.outputTokens else FINISH_REASON_LENGTH,
            started_seconds=time.monotonic(),
        )
        output.begin(input_tokens)
        if self._options.tokensPerSecond == 0 and self._options.firstTokenSeconds == 0:
            self._advance(answer, length)
            output.compute_seconds = time.monotonic() - answer.started_seconds
            output.end()
            return
        output.compute_seconds = 0.0
        self._answers[generation.id] = answer
        if self._timer is None:
            self._stepped_seconds = answer.started_seconds
            self._timer = asyncio.get_running_loop().call_later(STEP_SECONDS, self._step)

    async def embed(self, attempt_id: str, inputs: Sequence[Text | Tokens]) -> Vectors:
        started_seconds = time.monotonic()
        tokens = sum(map(token_count, inputs))
        check_embedding_tokens(tokens)
        return Vectors([vector(item) for item in inputs], tokens, time.monotonic() - started_seconds)

    def cancel(self, attempt_id: str) -> None:
        self._answers.pop(attempt_id, None)

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._answers))

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._answers.clear()

    def _step(self) -> None:
        """Advances every request to the tokens that are due now. Their compute time is the step's, divided evenly."""
        now_seconds = time.monotonic()
        rate = self._options.tokensPerSecond
        share = (now_seconds - self._stepped_seconds) / max(1, len(self._answers))
        self._stepped_seconds = now_seconds
        for attempt_id, answer in list(self._answers.items()):
            answer.output.compute_seconds = (answer.output.compute_seconds or 0.0) + share
            generating_seconds = now_seconds - answer.started_seconds - self._options.firstTokenSeconds
            if generating_seconds < 0:
                continue
            self._advance(answer, 1 + int(generating_seconds * rate) if rate else self._options.outputTokens)
            if all(choice.finish_reason for choice in answer.choices):
                del self._answers[attempt_id]
                answer.output.end()
        self._timer = asyncio.get_running_loop().call_later(STEP_SECONDS, self._step) if self._answers else None

    def _advance(self, answer: _Answer, due: int) -> None:
        """Advances each choice to `due` tokens of this attempt, or to its end."""
        for choice in answer.choices:
            if choice.finish_reason:
                continue
            end = min(choice.resumed + due, choice.limit)
            ids = [position % len(TOKENS) for position in range(choice.made, end)]
            text = "".join([TOKENS[token] for token in ids])
            choice.made = end
            if end >= choice.limit:
                choice.finish_reason = answer.finish_reason
            if choice.scanner is not None:
                text, ids = _scanned(choice.scanner, ids, last=bool(choice.finish_reason))
                if choice.scanner.stopped:
                    choice.finish_reason = FINISH_REASON_STOP
            if ids or text or choice.finish_reason:
                answer.output.add(Delta(choice.index, [text] if text else [], ids, choice.finish_reason))


def token_count(prompt: Prompt) -> int:
    """Counts tokens without a tokenizer: four characters are one."""
    if isinstance(prompt, Tokens):
        return max(1, len(prompt.ids))
    if isinstance(prompt, Text):
        return 1 + len(prompt.text) // CHARACTERS_PER_TOKEN
    return 1 + sum(len(str(message.get("content") or "")) for message in prompt.messages) // CHARACTERS_PER_TOKEN


def vector(item: Text | Tokens) -> bytes:
    """A unit vector that depends on the input alone."""
    source = item.text.encode() if isinstance(item, Text) else repr(list(item.ids)).encode()
    digest = hashlib.shake_128(source).digest(VECTOR_VALUES)
    return unit_vector([byte - 127.5 for byte in digest])


def _scanned(scanner: StopScanner, ids: list[int], *, last: bool) -> tuple[str, list[int]]:
    texts: list[str] = []
    released: list[int] = []
    for token in ids:
        text, done = scanner.push(TOKENS[token], [token])
        texts.append(text)
        released += done
        if scanner.stopped:
            break
    if last and not scanner.stopped:
        text, done = scanner.flush()
        texts.append(text)
        released += done
    return "".join(texts), released
