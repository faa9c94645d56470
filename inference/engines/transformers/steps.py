"""The hop from the engine's thread to the event loop: one for each step, whatever the number of requests in it."""

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
from inference.engines.transformers.detokenizer import Detokenizer
from inference.engines.transformers.sampler import Draw

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Choice:
    """One choice of a request on its way. The engine's thread reads tokens into it; the event loop owns `request`."""

    request: "Request"
    index: int
    engine_id: str
    draw: Draw
    detokenizer: Detokenizer
    scanner: StopScanner | None
    end_tokens: frozenset[int]
    taken: int = 0  # tokens already read
    stopped: bool = False  # a stop text came: whatever the engine still says is not wanted


@dataclass(slots=True, eq=False)
class Request:
    """A request and where its pieces go. Used on the event loop only."""

    attempt_id: str
    output: Output
    input_tokens: int
    running: dict[str, Choice]


@dataclass(slots=True)
class News:
    """What one step says of one choice."""

    choice: Choice
    delta: Delta | None
    error: str | None = None


class StepRouter(OutputRouter):  # type: ignore[misc]  # untyped base
    """Takes the outputs of a step in the engine's thread, makes text of them there, and hops once."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        steps: StepClock,
        cancel: Callable[[str], None],
        arrived: Callable[[list[News]], None],
    ) -> None:
        super().__init__()
        self._loop = loop
        self._steps = steps
        self._cancel = cancel
        self._arrived = arrived
        self._choices: dict[str, Choice] = {}

    def add(self, choice: Choice) -> None:
        self._choices[choice.engine_id] = choice

    def remove(self, engine_id: str) -> None:
        self._choices.pop(engine_id, None)

    def deliver(self, output: GenerationOutput) -> None:
        """The library reports failures one by one."""
        self.deliver_batch([output])

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        """Everything that one step made."""
        self._steps.end()
        news = [
            item
            for output in outputs
            if (choice := self._choices.get(output.request_id)) is not None
            and (item := self._read(choice, output)) is not None
        ]
        if news:
            self._loop.call_soon_threadsafe(self._arrived, news)

    def _read(self, choice: Choice, output: GenerationOutput) -> News | None:
        if choice.stopped:
            return None
        if output.status == RequestStatus.FAILED:
            return News(choice, None, error=output.error or "the engine gave no reason")
        tokens = output.generated_tokens[choice.taken :]
        choice.taken = len(output.generated_tokens)
        finish_reason: FinishReason.ValueType = FINISH_REASON_UNSPECIFIED
        if output.status == RequestStatus.FINISHED:
            ended = bool(tokens) and tokens[-1] in choice.end_tokens
            finish_reason = FINISH_REASON_STOP if ended else FINISH_REASON_LENGTH
        delta = _delta(choice, tokens, finish_reason)
        if choice.stopped and not finish_reason:
            self._cancel(choice.engine_id)
        if not delta.token_ids and not delta.parts and not delta.finish_reason:
            return None
        return News(choice, delta)


def _delta(choice: Choice, tokens: list[int], finish_reason: FinishReason.ValueType) -> Delta:
    """Text of the new tokens, without what is held back for a character or for a stop text."""
    texts: list[str] = []
    ready: list[int] = []
    for token in tokens:
        decoded = choice.detokenizer.push(token)
        if decoded is None:
            continue
        text, ids = decoded
        if choice.scanner is not None:
            text, ids = choice.scanner.push(text, ids)
            choice.stopped = choice.scanner.stopped
        texts.append(text)
        ready += ids
        if choice.stopped:
            finish_reason = FINISH_REASON_STOP
            break
    if finish_reason and not choice.stopped:
        if choice.scanner is not None:
            text, ids = choice.scanner.flush()
            texts.append(text)
            ready += ids
        ready += choice.detokenizer.flush()
    text = "".join(texts)
    return Delta(choice.index, [text] if text else [], ready, finish_reason)


def engine_error(problem: str | BaseException | None) -> UplionError:
    """What a client hears when the engine broke; why is in the log."""
    logger.error("the engine failed", extra={"problem": str(problem)})
    return UplionError(Reason.INTERNAL, "The model's engine failed.")
