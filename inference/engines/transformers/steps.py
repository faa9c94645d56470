"""Step outputs from the engine's thread to the event loop: one call for each step, whatever the number of requests."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestStatus
from uplion.inference.v1.sampling_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    FINISH_REASON_UNSPECIFIED,
    FinishReason,
)

from common.deltas import Delta
from common.errors import Reason, UplionError
from inference.engines.output import Output
from inference.engines.stopping import StopScanner
from inference.engines.transformers.compute_time import StepClock
from inference.engines.transformers.sampler import Draw
from inference.engines.transformers.text.detokenizer import Detokenizer

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Choice:
    """One choice being generated. The engine's thread decodes its tokens; only the event loop uses `request`."""

    request: "Request"
    index: int
    engine_id: str
    draw: Draw
    detokenizer: Detokenizer
    scanner: StopScanner | None
    end_tokens: frozenset[int]
    decoded: int = 0  # how many of its tokens
    stopped: bool = False  # a stop text was generated: later tokens are dropped


@dataclass(slots=True, eq=False)
class Request:
    """A request and its output. Used on the event loop only."""

    attempt_id: str
    output: Output
    input_tokens: int
    running: dict[str, Choice]  # those without a finish reason, by the library's request id


@dataclass(slots=True)
class StepOutput:
    """What one step generated of one choice, or why it failed."""

    choice: Choice
    delta: Delta | None
    error: str | None = None


class StepRouter(OutputRouter):  # type: ignore[misc]  # untyped base
    """Decodes the outputs of a step in the engine's thread, then calls `on_step` on the event loop, once."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        steps: StepClock,
        cancel: Callable[[str], None],
        on_step: Callable[[list[StepOutput]], None],
    ) -> None:
        super().__init__()
        self._loop = loop
        self._steps = steps
        self._cancel = cancel
        self._on_step = on_step
        self._choices: dict[str, Choice] = {}

    def add(self, choice: Choice) -> None:
        self._choices[choice.engine_id] = choice

    def remove(self, engine_id: str) -> None:
        self._choices.pop(engine_id, None)

    def deliver(self, output: GenerationOutput) -> None:
        """One output: the library reports failures this way."""
        self.deliver_batch([output])

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        """All outputs of one step."""
        self._steps.end()
        made = [
            item
            for output in outputs
            if (choice := self._choices.get(output.request_id)) is not None
            and (item := self._read(choice, output)) is not None
        ]
        if made:
            self._loop.call_soon_threadsafe(self._on_step, made)

    def _read(self, choice: Choice, output: GenerationOutput) -> StepOutput | None:
        if choice.stopped:
            return None
        if output.status == RequestStatus.FAILED:
            return StepOutput(choice, None, error=output.error or "the engine gave no reason")
        tokens = output.generated_tokens[choice.decoded :]
        choice.decoded = len(output.generated_tokens)
        finish_reason: FinishReason.ValueType = FINISH_REASON_UNSPECIFIED
        if output.status == RequestStatus.FINISHED:
            ended = bool(tokens) and tokens[-1] in choice.end_tokens
            finish_reason = FINISH_REASON_STOP if ended else FINISH_REASON_LENGTH
        delta = _delta(choice, tokens, finish_reason)
        if choice.stopped and not finish_reason:
            self._cancel(choice.engine_id)
        if not delta.token_ids and not delta.parts and not delta.finish_reason:
            return None
        return StepOutput(choice, delta)


def _delta(choice: Choice, tokens: list[int], finish_reason: FinishReason.ValueType) -> Delta:
    """The new tokens and their text, without those held back for an incomplete character or a possible stop text."""
    texts: list[str] = []
    ready: list[int] = []

    def add(text: str, ids: list[int]) -> None:
        if choice.scanner is not None:
            text, ids = choice.scanner.push(text, ids)
            choice.stopped = choice.scanner.stopped
        texts.append(text)
        ready.extend(ids)

    for token in tokens:
        decoded = choice.detokenizer.push(token)
        if decoded is not None:
            add(*decoded)
        if choice.stopped:
            break
    if finish_reason and not choice.stopped:
        add(*choice.detokenizer.flush())
        if choice.scanner is not None and not choice.stopped:
            text, ids = choice.scanner.flush()
            texts.append(text)
            ready += ids
    if choice.stopped:
        finish_reason = FINISH_REASON_STOP
    text = "".join(texts)
    return Delta(choice.index, [text] if text else [], ready, finish_reason)


def engine_error(problem: str | BaseException | None) -> UplionError:
    """The error for a client when the engine fails; the log has the reason."""
    logger.error("the engine failed", extra={"problem": str(problem)})
    return UplionError(Reason.INTERNAL, "The model's engine failed.")
