"""What the parsers of all dialects share: refusals, bounds, and a job from checked parts."""

import re
from typing import Final, NoReturn

import msgspec
from uplion.dispatch.v1.run_pb2 import ChatInput, EmbeddingInput, RunRequest, TextInput
from uplion.inference.v1.sampling_pb2 import Sampling

from common.errors import Reason, UplionError
from common.identity import Identity
from common.operations import Capability, Dialect, Operation
from router.dispatch.jobs import Job

MAX_MESSAGES: Final = 4096
MAX_NAME_CHARACTERS: Final = 256
MAX_INPUTS: Final = 2048  # OpenAI's own bound for embeddings
ROLES: Final = frozenset({"system", "developer", "user", "assistant"})
BAD_ROLE: Final = "must be one of system, developer, user, assistant"

_GUESSED_OUTPUT_TOKENS: Final = 256
_CHARACTERS_PER_TOKEN: Final = 4
_UINT32: Final = (1 << 32) - 1

_encode = msgspec.json.Encoder().encode


def invalid(param: str, problem: str) -> NoReturn:
    """Refuses a field whose value is wrong."""
    raise UplionError(Reason.INVALID_REQUEST, f"'{param}' {problem}.", param=param)


def unsupported(param: str, problem: str = "is not supported") -> NoReturn:
    """Refuses a field that asks for something that is not built."""
    raise UplionError(Reason.UNSUPPORTED_PARAMETER, f"'{param}' {problem}.", param=param)


# What each operation calls its input. Workers say `prompt` or `input`, whatever was called.
_INPUTS: Final = {
    (Dialect.OPENAI, Capability.CHAT): "messages",
    (Dialect.OPENAI, Capability.COMPLETION): "prompt",
    (Dialect.OPENAI, Capability.EMBEDDING): "input",
    (Dialect.NATIVE, Capability.CHAT): "messages",
    (Dialect.NATIVE, Capability.COMPLETION): "prompt",
    (Dialect.NATIVE, Capability.EMBEDDING): "inputs",
}
_INPUT_PARAM: Final = re.compile(r"(?:messages|prompt|inputs?)(?![^.\[])")


def name_input(error: UplionError, operation: Operation) -> None:
    """Puts the operation's own name of its input where the error names that; a context that is too small is its too."""
    assert operation.capability is not None
    name = _INPUTS[operation.dialect, operation.capability]
    if error.param is not None:
        if (found := _INPUT_PARAM.match(error.param)) is not None:
            error.param = name + error.param[found.end() :]
    elif error.reason is Reason.CONTEXT_LENGTH_EXCEEDED:
        error.param = name


def check_model(model: str, identity: Identity) -> str:
    """The model, if the router reads the same one from the request as the edge did; raises INVALID_REQUEST otherwise.

    They differ where a body names `model` twice, or where a native client's metadata and message differ. Limits and
    permissions were checked for what the edge read.
    """
    if not model:
        raise UplionError(Reason.INVALID_REQUEST, "You must provide a model.", param="model")
    if model != identity.model:
        raise UplionError(
            Reason.INVALID_REQUEST,
            "The model in the request differs from the one it was admitted for; name it exactly once.",
            param="model",
        )
    return model


def capped_output(asked: int | None, identity: Identity) -> int | None:
    """Most output tokens: what was asked for, within the caller's limit; None: context and model decide."""
    cap = identity.max_output_tokens
    if asked is None or cap is None:
        return cap if asked is None else asked
    return min(asked, cap)


def chat_job(identity: Identity, model: str, messages: list[dict[str, str]], sampling: Sampling) -> Job:
    """A job for messages in their plain form: role, text content, and name where one was given."""
    run = RunRequest(chat=ChatInput(messages_json=_encode(messages)), sampling=sampling)
    return _generation(identity, Capability.CHAT, model, run, sum(len(message["content"]) for message in messages))


def completion_job(identity: Identity, model: str, prompt: TextInput, sampling: Sampling) -> Job:
    run = RunRequest(completion=prompt, sampling=sampling)
    return _generation(identity, Capability.COMPLETION, model, run, characters(prompt))


def embedding_job(identity: Identity, model: str, items: list[TextInput]) -> Job:
    run = RunRequest(embedding=EmbeddingInput(items=items))
    estimate = 1 + sum(map(characters, items)) // _CHARACTERS_PER_TOKEN
    return Job(identity, Capability.EMBEDDING, model, run, choices=0, estimated_tokens=estimate)


def characters(item: TextInput) -> int:
    """About how many characters of text an input is worth."""
    return _CHARACTERS_PER_TOKEN * len(item.tokens.ids) if item.HasField("tokens") else len(item.text)


def _generation(identity: Identity, capability: Capability, model: str, run: RunRequest, size: int) -> Job:
    choices = run.sampling.choices or 1
    output = run.sampling.max_output_tokens or _GUESSED_OUTPUT_TOKENS
    estimate = min(1 + size // _CHARACTERS_PER_TOKEN + output * choices, _UINT32)
    return Job(identity, capability, model, run, choices=choices, estimated_tokens=estimate)
