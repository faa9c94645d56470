"""OpenAI request bodies: strict JSON in, a checked job out. Every field is taken, refused with its name, or unknown.

Unknown fields are let through, as OpenAI clients send them freely; known ones that are not built yet are refused rather
than ignored. Whatever is wrong is the client's error (400) and is found in one pass over bounded input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from uplion.dispatch.v1.run_pb2 import ChatInput, EmbeddingInput, RunRequest, TextInput, TokenArray
from uplion.inference.v1.sampling_pb2 import Sampling

from common.identity import Identity
from common.operations import OPENAI_FACTS
from router.jobs import Job, Operation, capped_output, check_model
from router.openai_fields import (
    Body,
    check_unknown,
    flag,
    integer,
    invalid,
    json_object,
    known,
    number,
    text,
    unsupported,
)

_MAX_MESSAGES: Final = 4096
_MAX_PARTS: Final = 4096
_MAX_INPUTS: Final = 2048  # OpenAI's own bound for embeddings
_MAX_INPUT_TOKENS: Final = 1 << 18  # given as token arrays; OpenAI allows 300,000
_MAX_CHOICES: Final = 8
_MAX_STOPS: Final = 4
_MAX_STOP_CHARACTERS: Final = 1024
_MAX_NAME_CHARACTERS: Final = 256
_MAX_TOKEN_ID: Final = (1 << 32) - 1
_MAX_OUTPUT_TOKENS: Final = 1 << 24
_INT64: Final = 1 << 63
_COMPLETION_TOKENS: Final = 16  # what the legacy API generates when it is not told
_ROLES: Final = frozenset({"system", "developer", "user", "assistant"})

_READ_AGAIN: Final = OPENAI_FACTS.read_again

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """A job, and how its answer is to be written."""

    job: Job
    stream: bool
    include_usage: bool
    base64: bool = False  # embeddings as base64 of little-endian float32


def parse_chat(data: bytes, identity: Identity) -> OpenAIRequest:
    """The body of POST /v1/chat/completions."""
    body = json_object(data, _READ_AGAIN)
    model = check_model(text(body, "model"), identity)
    _refuse_unbuilt(body, _CHAT_UNBUILT)
    messages, characters = _messages(body.get("messages"))
    asked = integer(body, "max_completion_tokens", 1, _MAX_OUTPUT_TOKENS)
    if asked is None:
        asked = integer(body, "max_tokens", 1, _MAX_OUTPUT_TOKENS)
    sampling = _sampling(body, capped_output(asked, identity))
    run = RunRequest(chat=ChatInput(messages_json=_encode(messages)), sampling=sampling)
    return _generation(body, identity, Operation.CHAT, model, run, characters)


def parse_completion(data: bytes, identity: Identity) -> OpenAIRequest:
    """The body of POST /v1/completions."""
    body = json_object(data, _READ_AGAIN)
    model = check_model(text(body, "model"), identity)
    _refuse_unbuilt(body, _COMPLETION_UNBUILT)
    if "prompt" not in body:
        invalid("prompt", "is required")
    prompt = body["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    item, characters = _text_input(prompt, "prompt")
    asked = integer(body, "max_tokens", 1, _MAX_OUTPUT_TOKENS)
    sampling = _sampling(body, capped_output(_COMPLETION_TOKENS if asked is None else asked, identity))
    best_of = integer(body, "best_of", 1, 20)
    if best_of is not None and best_of != (sampling.choices or 1):
        unsupported("best_of", "is only supported when it equals n")
    run = RunRequest(completion=item, sampling=sampling)
    return _generation(body, identity, Operation.COMPLETION, model, run, characters)


def parse_embedding(data: bytes, identity: Identity) -> OpenAIRequest:
    """The body of POST /v1/embeddings."""
    body = json_object(data, _READ_AGAIN)
    model = check_model(text(body, "model"), identity)
    _refuse_unbuilt(body, _EMBEDDING_UNBUILT)
    encoding = body.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        invalid("encoding_format", "must be float or base64")
    known(body, "user", _is_text)
    items, characters = _embedding_items(body.get("input"))
    run = RunRequest(embedding=EmbeddingInput(items=items))
    job = Job(identity, Operation.EMBEDDING, model, run, choices=0, estimated_tokens=1 + characters // 4)
    check_unknown(body)
    return OpenAIRequest(job, stream=False, include_usage=False, base64=encoding == "base64")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _refuse_unbuilt(body: Body, unbuilt: dict[str, Callable[[Any], bool]]) -> None:
    for name in unbuilt.keys() & body.keys():
        value = body[name]
        if value is not None and not unbuilt[name](value):
            unsupported(name)


def _is_empty(value: Any) -> bool:
    return value in ([], {}, "", False)


def _is_zero(value: Any) -> bool:
    return value is False or (type(value) is int and value == 0)


def _is_text_format(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "text"


def _is_text_only(value: Any) -> bool:
    return bool(value == ["text"])


def _never(value: Any) -> bool:
    return False


# Field -> the values that ask for nothing, hence are fine. Anything else is a 400 until it is built.
_CHAT_UNBUILT: Final[dict[str, Callable[[Any], bool]]] = {
    "tools": _is_empty,
    "tool_choice": lambda value: value in ("none", "auto"),
    "parallel_tool_calls": lambda value: isinstance(value, bool),
    "functions": _is_empty,
    "function_call": lambda value: value in ("none", "auto"),
    "response_format": _is_text_format,
    "logprobs": _is_zero,
    "top_logprobs": _is_zero,
    "logit_bias": _is_empty,
    "modalities": _is_text_only,
    "audio": _never,
    "prediction": _never,
    "web_search_options": _never,
}
_COMPLETION_UNBUILT: Final[dict[str, Callable[[Any], bool]]] = {
    "suffix": _is_empty,
    "echo": _is_zero,
    "logprobs": lambda value: value is False,
    "logit_bias": _is_empty,
}
_EMBEDDING_UNBUILT: Final[dict[str, Callable[[Any], bool]]] = {"dimensions": _never}


# --- Parts of a request -----------------------------------------------------------------------------------------------


def _generation(
    body: Body, identity: Identity, operation: Operation, model: str, run: RunRequest, characters: int
) -> OpenAIRequest:
    stream = flag(body, "stream")
    options = body.get("stream_options")
    include_usage = False
    if options is not None:
        if not isinstance(options, dict):
            invalid("stream_options", "must be an object")
        if not stream:
            invalid("stream_options", "is only allowed when 'stream' is true")
        include_usage = flag(options, "include_usage")
    known(body, "user", _is_text)
    known(body, "store", lambda value: isinstance(value, bool))
    known(body, "metadata", lambda value: isinstance(value, dict))
    check_unknown(body)
    choices = run.sampling.choices or 1
    output = run.sampling.max_output_tokens or 256
    estimate = min(1 + characters // 4 + output * choices, _MAX_TOKEN_ID)
    job = Job(identity, operation, model, run, choices=choices, estimated_tokens=estimate)
    return OpenAIRequest(job, stream, include_usage)


def _sampling(body: Body, max_output_tokens: int | None) -> Sampling:
    top_p = number(body, "top_p", 0, 1)
    if top_p == 0:
        invalid("top_p", "must be greater than 0")
    choices = integer(body, "n", 1, 128)
    if choices is not None and choices > _MAX_CHOICES:
        unsupported("n", f"must be at most {_MAX_CHOICES}")
    # min_p and the like are unknown to OpenAI; top_k is not either, but every open engine takes it (-1 means all).
    top_k = integer(body, "top_k", -1, _MAX_TOKEN_ID)
    return Sampling(
        max_output_tokens=max_output_tokens,
        temperature=number(body, "temperature", 0, 2),
        top_p=top_p,
        top_k=0 if top_k == -1 else top_k,
        seed=integer(body, "seed", -_INT64, _INT64 - 1),
        stop=_stops(body.get("stop")),
        choices=choices,
        frequency_penalty=number(body, "frequency_penalty", -2, 2),
        presence_penalty=number(body, "presence_penalty", -2, 2),
    )


def _stops(value: Any) -> list[str]:
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        invalid("stop", "must be a string or an array of strings")
    if len(stops) > _MAX_STOPS:
        invalid("stop", f"may hold at most {_MAX_STOPS} strings")
    if any(not stop or len(stop) > _MAX_STOP_CHARACTERS for stop in stops):
        invalid("stop", f"must hold strings of 1 to {_MAX_STOP_CHARACTERS} characters")
    return stops


def _messages(value: Any) -> tuple[list[dict[str, str]], int]:
    """The conversation in one plain form (role, text content, name), and how many characters it has.

    Workers get this form, not the client's bytes: what was checked is what is answered.
    """
    if not isinstance(value, list) or not value:
        invalid("messages", "must be an array with at least one message")
    if len(value) > _MAX_MESSAGES:
        invalid("messages", f"may hold at most {_MAX_MESSAGES} messages")
    characters = 0
    messages: list[dict[str, str]] = []
    for index, entry in enumerate(value):
        if not isinstance(entry, dict):
            invalid(f"messages[{index}]", "must be an object")
        role = entry.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            if role in ("tool", "function"):
                unsupported(f"messages[{index}].role", "is not supported")
            invalid(f"messages[{index}].role", "must be one of system, developer, user, assistant")
        for name in ("tool_calls", "function_call", "audio"):
            if entry.get(name):
                unsupported(f"messages[{index}].{name}")
        content = entry.get("content")
        if not isinstance(content, str):
            content = _joined_parts(content, f"messages[{index}].content")
        characters += len(content)
        message = {"role": role, "content": content}
        speaker = entry.get("name")
        if speaker is not None:
            if not isinstance(speaker, str) or len(speaker) > _MAX_NAME_CHARACTERS:
                invalid(f"messages[{index}].name", f"must be a string of at most {_MAX_NAME_CHARACTERS} characters")
            message["name"] = speaker
        messages.append(message)
    return messages, characters


def _joined_parts(parts: Any, param: str) -> str:
    if not isinstance(parts, list) or not parts:
        invalid(param, "must be a string or an array of text parts")
    if len(parts) > _MAX_PARTS:
        invalid(param, f"may hold at most {_MAX_PARTS} parts")
    texts: list[str] = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            invalid(f"{param}[{index}].type", "must be a string")
        if kind != "text":
            unsupported(f"{param}[{index}].type", "must be text; other parts are not supported")
        said = part.get("text")
        if not isinstance(said, str):
            invalid(f"{param}[{index}].text", "must be a string")
        texts.append(said)
    return "\n".join(texts)


def _text_input(value: Any, param: str) -> tuple[TextInput, int]:
    """A text or a token array, and about how many characters it is worth."""
    if isinstance(value, str):
        if not value:
            invalid(param, "must not be empty")
        return TextInput(text=value), len(value)
    if not isinstance(value, list):
        invalid(param, "must be a string or an array of token ids")
    if not value:
        invalid(param, "must not be empty")
    if len(value) > _MAX_INPUT_TOKENS:
        invalid(param, f"may hold at most {_MAX_INPUT_TOKENS} tokens")
    if not all(type(token) is int and 0 <= token <= _MAX_TOKEN_ID for token in value):
        if all(isinstance(item, str | list) for item in value):
            unsupported(param, "with more than one prompt is not supported")
        invalid(param, "must hold token ids (integers from 0)")
    return TextInput(tokens=TokenArray(ids=value)), 4 * len(value)


def _embedding_items(value: Any) -> tuple[list[TextInput], int]:
    """`input` is a string, an array of strings, a token array, or an array of token arrays."""
    many = isinstance(value, list) and value and isinstance(value[0], str | list)
    if not many:
        item, characters = _text_input(value, "input")
        return [item], characters
    if len(value) > _MAX_INPUTS:
        invalid("input", f"may hold at most {_MAX_INPUTS} entries")
    items: list[TextInput] = []
    total = 0
    for index, entry in enumerate(value):
        if not isinstance(entry, type(value[0])):
            invalid(f"input[{index}]", "must be of the same type as the entries before it")
        item, characters = _text_input(entry, f"input[{index}]")
        items.append(item)
        total += characters
        if type(entry) is list and total > 4 * _MAX_INPUT_TOKENS:
            invalid("input", f"may hold at most {_MAX_INPUT_TOKENS} tokens")
    return items, total
