"""Native requests: typed messages in, a checked job out. Ranges are those of uplion.inference.v1.Sampling."""

from collections.abc import Sequence
from typing import Final, NoReturn

import msgspec
from uplion.dispatch.v1.run_pb2 import ChatInput, EmbeddingInput, RunRequest, TextInput
from uplion.inference.v1.chat_pb2 import ChatMessage, ChatRequest, ChatStreamRequest
from uplion.inference.v1.completion_pb2 import CompletionRequest, CompletionStreamRequest
from uplion.inference.v1.embedding_pb2 import EmbedRequest
from uplion.inference.v1.sampling_pb2 import Sampling

from common.errors import Reason, UplionError
from common.identity import Identity
from router.jobs import Job, Operation, capped_output, check_model

_ROLES: Final = frozenset({"system", "developer", "user", "assistant"})
_MAX_MESSAGES: Final = 4096
_MAX_INPUTS: Final = 2048
_MAX_CHOICES: Final = 8
_MAX_STOPS: Final = 4
_MAX_STOP_CHARACTERS: Final = 1024
_MAX_NAME_CHARACTERS: Final = 256
_GUESSED_OUTPUT_TOKENS: Final = 256
_UINT32: Final = (1 << 32) - 1

_encode = msgspec.json.Encoder().encode


def chat_job(request: ChatRequest | ChatStreamRequest, identity: Identity) -> Job:
    model = check_model(request.model, identity)
    messages = [_message(index, message) for index, message in enumerate(_bounded(request.messages, "messages"))]
    characters = sum(len(message["content"]) for message in messages)
    run = RunRequest(chat=ChatInput(messages_json=_encode(messages)), sampling=_sampling(request.sampling, identity))
    return _generation(Operation.CHAT, model, identity, run, characters)


def completion_job(request: CompletionRequest | CompletionStreamRequest, identity: Identity) -> Job:
    model = check_model(request.model, identity)
    if not request.prompt:
        _invalid("prompt", "is required")
    run = RunRequest(completion=TextInput(text=request.prompt), sampling=_sampling(request.sampling, identity))
    return _generation(Operation.COMPLETION, model, identity, run, len(request.prompt))


def embedding_job(request: EmbedRequest, identity: Identity) -> Job:
    model = check_model(request.model, identity)
    if not 1 <= len(request.inputs) <= _MAX_INPUTS:
        _invalid("inputs", f"must hold 1 to {_MAX_INPUTS} texts")
    for index, text in enumerate(request.inputs):
        if not text:
            _invalid(f"inputs[{index}]", "must not be empty")
    run = RunRequest(embedding=EmbeddingInput(items=[TextInput(text=text) for text in request.inputs]))
    characters = sum(map(len, request.inputs))
    return Job(identity, Operation.EMBEDDING, model, run, choices=0, estimated_tokens=1 + characters // 4)


def _invalid(param: str, problem: str) -> NoReturn:
    raise UplionError(Reason.INVALID_REQUEST, f"'{param}' {problem}.", param=param)


def _generation(operation: Operation, model: str, identity: Identity, run: RunRequest, characters: int) -> Job:
    choices = run.sampling.choices or 1
    output = run.sampling.max_output_tokens or _GUESSED_OUTPUT_TOKENS
    estimate = min(1 + characters // 4 + output * choices, _UINT32)
    return Job(identity, operation, model, run, choices=choices, estimated_tokens=estimate)


def _bounded(messages: Sequence[ChatMessage], param: str) -> Sequence[ChatMessage]:
    if not 1 <= len(messages) <= _MAX_MESSAGES:
        _invalid(param, f"must hold 1 to {_MAX_MESSAGES} messages")
    return messages


def _message(index: int, message: ChatMessage) -> dict[str, str]:
    if message.role not in _ROLES:
        _invalid(f"messages[{index}].role", "must be one of system, developer, user, assistant")
    plain = {"role": message.role, "content": message.content}
    if message.name:
        if len(message.name) > _MAX_NAME_CHARACTERS:
            _invalid(f"messages[{index}].name", f"must have at most {_MAX_NAME_CHARACTERS} characters")
        plain["name"] = message.name
    return plain


def _sampling(asked: Sampling, identity: Identity) -> Sampling:
    """The same, checked and capped. Comparisons are written so that NaN fails them."""
    if asked.HasField("temperature") and not 0 <= asked.temperature <= 2:
        _invalid("sampling.temperature", "must be from 0 to 2")
    if asked.HasField("top_p") and not 0 < asked.top_p <= 1:
        _invalid("sampling.top_p", "must be greater than 0 and at most 1")
    for name in ("frequency_penalty", "presence_penalty"):
        if asked.HasField(name) and not -2 <= getattr(asked, name) <= 2:
            _invalid(f"sampling.{name}", "must be from -2 to 2")
    if asked.HasField("choices") and not 1 <= asked.choices <= _MAX_CHOICES:
        _invalid("sampling.choices", f"must be from 1 to {_MAX_CHOICES}")
    if asked.HasField("max_output_tokens") and asked.max_output_tokens == 0:
        _invalid("sampling.max_output_tokens", "must be at least 1")
    if len(asked.stop) > _MAX_STOPS or any(not 1 <= len(stop) <= _MAX_STOP_CHARACTERS for stop in asked.stop):
        _invalid("sampling.stop", f"may hold at most {_MAX_STOPS} texts of 1 to {_MAX_STOP_CHARACTERS} characters")
    sampling = Sampling()
    sampling.CopyFrom(asked)
    output = capped_output(asked.max_output_tokens if asked.HasField("max_output_tokens") else None, identity)
    if output is not None:
        sampling.max_output_tokens = output
    return sampling
