"""Native requests: typed messages in, a checked job out."""

from typing import Final

from uplion.dispatch.v1.run_pb2 import TextInput
from uplion.inference.v1 import chat_pb2, completion_pb2, embedding_pb2, sampling_pb2

from common.identity import Identity
from common.sampling import MAX_STOP_CHARACTERS, MAX_STOPS, Sampling, fields_set
from router.dispatch.jobs import Job
from router.surfaces import requests
from router.surfaces.json_body import Schema
from router.surfaces.requests import capped_output, check_model, invalid

_BAD_STOP: Final = f"may hold at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters"
_SAMPLING: Final = Schema(
    Sampling, texts={"stop": _BAD_STOP, "stop[]": _BAD_STOP}, params={"stop[]": "stop"}, prefix="sampling."
)


def chat_job(request: chat_pb2.ChatRequest | chat_pb2.ChatStreamRequest, identity: Identity) -> Job:
    model = check_model(request.model, identity)
    if not 1 <= len(request.messages) <= requests.MAX_MESSAGES:
        invalid("messages", f"must hold 1 to {requests.MAX_MESSAGES} messages")
    messages = [_message(index, message) for index, message in enumerate(request.messages)]
    return requests.chat_job(identity, model, messages, _sampling(request.sampling, identity))


def completion_job(
    request: completion_pb2.CompletionRequest | completion_pb2.CompletionStreamRequest, identity: Identity
) -> Job:
    model = check_model(request.model, identity)
    if not request.prompt:
        invalid("prompt", "is required")
    prompt = TextInput(text=request.prompt)
    return requests.completion_job(identity, model, prompt, _sampling(request.sampling, identity))


def embedding_job(request: embedding_pb2.EmbedRequest, identity: Identity) -> Job:
    model = check_model(request.model, identity)
    if not 1 <= len(request.inputs) <= requests.MAX_INPUTS:
        invalid("inputs", f"must hold 1 to {requests.MAX_INPUTS} texts")
    for index, text in enumerate(request.inputs):
        if not text:
            invalid(f"inputs[{index}]", "must not be empty")
    return requests.embedding_job(identity, model, [TextInput(text=text) for text in request.inputs])


def _message(index: int, message: chat_pb2.ChatMessage) -> dict[str, str]:
    if message.role not in requests.ROLES:
        invalid(f"messages[{index}].role", requests.BAD_ROLE)
    plain = {"role": message.role, "content": message.content}
    if message.name:
        if len(message.name) > requests.MAX_NAME_CHARACTERS:
            invalid(f"messages[{index}].name", f"must have at most {requests.MAX_NAME_CHARACTERS} characters")
        plain["name"] = message.name
    return plain


def _sampling(asked: sampling_pb2.Sampling, identity: Identity) -> sampling_pb2.Sampling:
    """The same, checked and capped."""
    checked = _SAMPLING.convert(fields_set(asked))
    sampling = sampling_pb2.Sampling()
    sampling.CopyFrom(asked)
    output = capped_output(checked.max_output_tokens, identity)
    if output is not None:
        sampling.max_output_tokens = output
    return sampling
