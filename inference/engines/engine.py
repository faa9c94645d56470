"""The protocol between a worker and the engine that runs its model, and the values that pass between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from common.errors import Reason, UplionError
from common.sampling import Sampling
from inference.engines.output import Output

MAX_EMBEDDING_TOKENS = 300_000  # of all inputs of a request: OpenAI's own bound


class Capability(Enum):
    """Something that an engine can do; not every engine does all of them."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RESUME = "resume"  # continue after the tokens of an earlier attempt


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
    """The same as token ids of the model's own vocabulary."""

    ids: Sequence[int]


Prompt = Chat | Text | Tokens


@dataclass(frozen=True, slots=True)
class Generation:
    """One attempt to answer a request."""

    id: str  # the attempt's, unique in this process
    prompt: Prompt
    sampling: Sampling
    resume: tuple[tuple[int, ...], ...] = ()  # of each choice: the tokens that an earlier attempt delivered


@dataclass(frozen=True, slots=True)
class Vectors:
    """The answer to an embedding request."""

    values: list[bytes]  # little-endian float32, of unit length, in the order of the inputs
    input_tokens: int
    compute_seconds: float | None = None  # of the engine's time; None: not known


@dataclass(frozen=True, slots=True)
class EngineStats:
    """How busy an engine is."""

    queued: int = 0  # requests that wait for their prefill
    running: int = 0  # requests that generate
    cache_use: float | None = None  # 0 to 1; None: no cache, or not known


class Engine(Protocol):
    """Runs one model. All methods are called on the event loop."""

    provider: str  # for the ledger: the engine's name, or the upstream's
    capabilities: frozenset[Capability]
    context_tokens: int  # prompt and answer together; 0: not known

    async def start(self) -> None:
        """Returns when the model is loaded and has made its first step."""

    async def failure(self) -> Exception:
        """Returns the reason once the engine has failed for good; waits for ever while it works."""

    async def generate(self, generation: Generation, output: Output) -> None:
        """Begins a request, whose deltas follow on `output`; raises UplionError for one that it does not begin."""

    async def embed(self, attempt_id: str, inputs: Sequence[Text | Tokens]) -> Vectors:
        """The vectors of the inputs. Raises UplionError; cancelling the call stops it."""

    def cancel(self, attempt_id: str) -> None:
        """Ends a request within a step, without a further call on its output; an unknown id is ignored."""

    def stats(self) -> EngineStats:
        """How busy it is now."""

    async def close(self) -> None:
        """Ends the engine; running requests are dropped. Idempotent."""


def output_limit(sampling: Sampling, input_tokens: int, context_tokens: int) -> int:
    """Most tokens of a choice: as requested, but no more than the context has room for.

    Raises CONTEXT_LENGTH_EXCEEDED when it has room for none.
    """
    room = context_tokens - input_tokens
    if room < 1:
        raise prompt_too_long(context_tokens, input_tokens)
    return room if sampling.max_output_tokens is None else min(room, sampling.max_output_tokens)


def prompt_too_long(context_tokens: int, input_tokens: int, prompt_bytes: int | None = None) -> UplionError:
    """CONTEXT_LENGTH_EXCEEDED. With its bytes, the prompt was not tokenised: it has at least so many tokens."""
    has = f"{input_tokens}" if prompt_bytes is None else f"{prompt_bytes} bytes, which are at least {input_tokens}"
    return UplionError(
        Reason.CONTEXT_LENGTH_EXCEEDED,
        f"This model's context holds {context_tokens} tokens and the prompt has {has}; "
        "shorten the prompt so that there is room for an answer.",
        context_tokens=context_tokens,
        input_tokens=input_tokens,
    )


def check_embedding_tokens(tokens: int) -> None:
    """Raises INVALID_REQUEST where the inputs of an embedding request have more tokens together than one may have."""
    if tokens > MAX_EMBEDDING_TOKENS:
        raise UplionError(
            Reason.INVALID_REQUEST,
            f"The inputs have {tokens} tokens or more together, and a request may have at most "
            f"{MAX_EMBEDDING_TOKENS}; send them in several requests.",
            param="input",
            input_tokens=tokens,
        )
