"""Native requests: the same ranges as on the OpenAI surface, by the proto's own names."""

import json
import math
from typing import Any

import pytest
from uplion.inference.v1.chat_pb2 import ChatMessage, ChatRequest
from uplion.inference.v1.completion_pb2 import CompletionRequest
from uplion.inference.v1.embedding_pb2 import EmbedRequest
from uplion.inference.v1.sampling_pb2 import Sampling

from common.errors import Reason, UplionError
from common.identity import Identity
from router.surfaces.native.parse import chat_job, completion_job, embedding_job

IDENTITY = Identity("acme", "key1", "res1", "m", "default", 100, 60.0, "r1")
HELLO = [ChatMessage(role="user", content="hi", name="joe")]


def test_a_chat_becomes_a_job() -> None:
    request = ChatRequest(model="m", messages=HELLO, sampling=Sampling(choices=2, temperature=0.0))
    job = chat_job(request, IDENTITY)
    assert json.loads(job.run.chat.messages_json) == [{"role": "user", "content": "hi", "name": "joe"}]
    assert job.choices == 2
    assert job.run.sampling.max_output_tokens == 100
    assert job.run.sampling.temperature == 0.0
    assert not request.sampling.HasField("max_output_tokens")


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"temperature": -1.0}, "sampling.temperature"),
        ({"temperature": math.nan}, "sampling.temperature"),
        ({"top_p": 0.0}, "sampling.top_p"),
        ({"top_p": math.inf}, "sampling.top_p"),
        ({"choices": 0}, "sampling.choices"),
        ({"choices": 9}, "sampling.choices"),
        ({"max_output_tokens": 0}, "sampling.max_output_tokens"),
        ({"frequency_penalty": 2.5}, "sampling.frequency_penalty"),
        ({"presence_penalty": math.nan}, "sampling.presence_penalty"),
        ({"stop": ["a"] * 5}, "sampling.stop"),
        ({"stop": [""]}, "sampling.stop"),
    ],
)
def test_sampling_out_of_range_is_refused_by_name(sampling: dict[str, Any], param: str) -> None:
    with pytest.raises(UplionError) as caught:
        chat_job(ChatRequest(model="m", messages=HELLO, sampling=Sampling(**sampling)), IDENTITY)
    assert (caught.value.reason, caught.value.param) == (Reason.INVALID_REQUEST, param)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (ChatRequest(messages=HELLO), "model"),
        (ChatRequest(model="other", messages=HELLO), "model"),
        (ChatRequest(model="m"), "messages"),
        (ChatRequest(model="m", messages=[ChatMessage(content="x")]), "messages[0].role"),
        (ChatRequest(model="m", messages=[ChatMessage(role="user", name="x" * 300)]), "messages[0].name"),
    ],
)
def test_chats_are_refused_by_name(request_: ChatRequest, param: str) -> None:
    with pytest.raises(UplionError) as caught:
        chat_job(request_, IDENTITY)
    assert caught.value.param == param


def test_completions_and_embeddings() -> None:
    assert completion_job(CompletionRequest(model="m", prompt="x"), IDENTITY).run.completion.text == "x"
    job = embedding_job(EmbedRequest(model="m", inputs=["a", "b"]), IDENTITY)
    assert [item.text for item in job.run.embedding.items] == ["a", "b"]
    for broken in (EmbedRequest(model="m"), EmbedRequest(model="m", inputs=["a", ""])):
        with pytest.raises(UplionError):
            embedding_job(broken, IDENTITY)
    with pytest.raises(UplionError):
        completion_job(CompletionRequest(model="m"), IDENTITY)
