"""OpenAI request bodies: strict JSON in, a checked job out. Every field is taken, refused with its name, or unknown.

Whatever is wrong is the client's error (400) and is found in one pass over bounded input.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from uplion.dispatch.v1.run_pb2 import TextInput, TokenArray
from uplion.inference.v1.sampling_pb2 import Sampling

from common import sampling
from common.identity import Identity
from common.operations import OPENAI_FACTS
from router.dispatch.jobs import Job
from router.surfaces import requests
from router.surfaces.json_body import Body, check_unknown, json_object
from router.surfaces.openai import schema
from router.surfaces.openai.schema import GenerationBody, Message
from router.surfaces.requests import capped_output, check_model, invalid, unsupported

_COMPLETION_TOKENS: Final = 16  # what the legacy API generates where the body does not say
_READ_AGAIN: Final = OPENAI_FACTS.read_again
_LOOKED_AT: Final = frozenset({"prompt", "input", "model"})  # item by item


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """A job, and how its answer is to be written."""

    job: Job
    stream: bool
    include_usage: bool
    base64: bool = False  # embeddings as base64 of little-endian float32


def parse_chat(data: bytes, identity: Identity) -> OpenAIRequest:
    """The body of POST /v1/chat/completions."""
    given = json_object(data, _READ_AGAIN)
    body = schema.CHAT.convert(given)
    model = check_model(body.model, identity)
    _refuse_unbuilt(given, schema.CHAT_UNBUILT)
    messages = _messages(body.messages)
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    job = requests.chat_job(identity, model, messages, _sampling(given, body, capped_output(asked, identity)))
    return _generation(given, body, job)


def parse_completion(data: bytes, identity: Identity) -> OpenAIRequest:
    """The body of POST /v1/completions."""
    given = json_object(data, _READ_AGAIN)
    body = schema.COMPLETION.convert(given)
    model = check_model(body.model, identity)
    _refuse_unbuilt(given, schema.COMPLETION_UNBUILT)
    if "prompt" not in given:
        invalid("prompt", "is required")
    prompt = body.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    item = _text_input(prompt, "prompt")
    asked = _COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    drawn = _sampling(given, body, capped_output(asked, identity))
    if body.best_of is not None and body.best_of != (body.n or 1):
        unsupported("best_of", "is only supported when it equals n")
    return _generation(given, body, requests.completion_job(identity, model, item, drawn))


def parse_embedding(data: bytes, identity: Identity) -> OpenAIRequest:
    """The body of POST /v1/embeddings."""
    given = json_object(data, _READ_AGAIN)
    body = schema.EMBEDDING.convert(given)
    model = check_model(body.model, identity)
    _refuse_unbuilt(given, schema.EMBEDDING_UNBUILT)
    job = requests.embedding_job(identity, model, _embedding_items(body.input))
    check_unknown(given, _LOOKED_AT)
    return OpenAIRequest(job, stream=False, include_usage=False, base64=body.encoding_format == "base64")


Parse = Callable[[bytes, Identity], OpenAIRequest]
PARSERS: Final[Mapping[str, Parse]] = {
    "CreateChatCompletion": parse_chat,
    "CreateCompletion": parse_completion,
    "CreateEmbedding": parse_embedding,
}


def _refuse_unbuilt(given: Body, unbuilt: schema.Unbuilt) -> None:
    for name in unbuilt.keys() & given.keys():
        value = given[name]
        if value is not None and not unbuilt[name](value):
            unsupported(name)


def _generation(given: Body, body: GenerationBody, job: Job) -> OpenAIRequest:
    options = body.stream_options
    if options is not None and not body.stream:
        invalid("stream_options", "is only allowed when 'stream' is true")
    check_unknown(given, _LOOKED_AT)
    return OpenAIRequest(job, body.stream, include_usage=options is not None and bool(options.include_usage))


def _sampling(given: Body, body: GenerationBody, max_output_tokens: int | None) -> Sampling:
    """As workers take it; what the body leaves unset stays unset."""
    if body.n is not None and body.n > sampling.MAX_CHOICES:
        unsupported("n", f"must be at most {sampling.MAX_CHOICES}")
    shared = {name: getattr(body, name) for name in sampling.SHARED_FIELDS if given.get(name) is not None}
    if body.top_k == -1:
        shared["top_k"] = 0
    return Sampling(**shared, max_output_tokens=max_output_tokens, stop=_stops(body.stop), choices=body.n)


def _stops(stop: str | list[str] | None) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > sampling.MAX_STOPS:
        invalid("stop", schema.BAD_STOP_COUNT)
    if any(not 1 <= len(each) <= sampling.MAX_STOP_CHARACTERS for each in stops):
        invalid("stop", schema.BAD_STOP_SIZE)
    return stops


def _messages(messages: Sequence[Message] | None) -> list[dict[str, str]]:
    """The conversation in one plain form: role, text content, name.

    Workers get this form, not the client's bytes: what was checked is what is answered.
    """
    if not messages:
        invalid("messages", "must be an array with at least one message")
    if len(messages) > requests.MAX_MESSAGES:
        invalid("messages", f"may hold at most {requests.MAX_MESSAGES} messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Message, param: str) -> dict[str, str]:
    role, content = message.role, message.content
    if role not in requests.ROLES:
        if role in ("tool", "function"):
            unsupported(f"{param}.role", "is not supported")
        invalid(f"{param}.role", requests.BAD_ROLE)
    for name in ("tool_calls", "function_call", "audio"):
        if getattr(message, name):
            unsupported(f"{param}.{name}")
    plain = {"role": role, "content": content if isinstance(content, str) else _joined(content, f"{param}.content")}
    if message.name is not None:
        plain["name"] = message.name
    return plain


def _joined(parts: Sequence[schema.ContentPart] | None, param: str) -> str:
    if not parts:
        invalid(param, "must be a string or an array of text parts")
    if len(parts) > schema.MAX_PARTS:
        invalid(param, f"may hold at most {schema.MAX_PARTS} parts")
    texts: list[str] = []
    for index, part in enumerate(parts):
        if part.type is None:
            invalid(f"{param}[{index}].type", "must be a string")
        if part.type != "text":
            unsupported(f"{param}[{index}].type", "must be text; other parts are not supported")
        if part.text is None:
            invalid(f"{param}[{index}].text", "must be a string")
        texts.append(part.text)
    return "\n".join(texts)


def _text_input(value: object, param: str) -> TextInput:
    """A text or a token array."""
    if isinstance(value, str):
        if not value:
            invalid(param, "must not be empty")
        return TextInput(text=value)
    if not isinstance(value, list):
        invalid(param, "must be a string or an array of token ids")
    if not value:
        invalid(param, "must not be empty")
    if len(value) > schema.MAX_INPUT_TOKENS:
        invalid(param, f"may hold at most {schema.MAX_INPUT_TOKENS} tokens")
    if not all(type(token) is int and 0 <= token <= schema.MAX_TOKEN_ID for token in value):
        if all(isinstance(item, str | list) for item in value):
            unsupported(param, "with more than one prompt is not supported")
        invalid(param, "must hold token ids (integers from 0)")
    return TextInput(tokens=TokenArray(ids=value))


def _embedding_items(value: object) -> list[TextInput]:
    """`input` is a string, an array of strings, a token array, or an array of token arrays."""
    if not isinstance(value, list) or not value or not isinstance(value[0], str | list):
        return [_text_input(value, "input")]
    if len(value) > requests.MAX_INPUTS:
        invalid("input", f"may hold at most {requests.MAX_INPUTS} entries")
    items: list[TextInput] = []
    tokens = 0
    for index, entry in enumerate(value):
        if not isinstance(entry, type(value[0])):
            invalid(f"input[{index}]", "must be of the same type as the entries before it")
        items.append(_text_input(entry, f"input[{index}]"))
        if type(entry) is list and (tokens := tokens + len(entry)) > schema.MAX_INPUT_TOKENS:
            invalid("input", f"may hold at most {schema.MAX_INPUT_TOKENS} tokens")
    return items
