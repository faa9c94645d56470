"""The official Python SDK, unmodified."""

import base64
import json
import math
import struct
from typing import Any

import openai
import pytest

from tests.kit.platform import DEMO, SYNTHETIC, Platform

HELLO: Any = [{"role": "user", "content": "Hello!"}]


def test_chat(platform: Platform) -> None:
    answer = platform.client().chat.completions.create(model=DEMO, messages=HELLO, temperature=0, max_tokens=60)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.model == DEMO
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


def test_the_demo_model_answers_sensibly_and_says_what_it_is(platform: Platform) -> None:
    def ask(question: str) -> str:
        answer = platform.client().chat.completions.create(
            model=DEMO, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=80
        )
        return answer.choices[0].message.content or ""

    assert "4" in ask("What is 2 + 2?")
    assert "Paris" in ask("What is the capital of France?")
    assert "3000" in ask("How many metres are in 3 km?").replace(",", "")
    assert "Uplion" in ask("Who are you?")


def test_stream_is_the_same_answer_in_pieces(platform: Platform) -> None:
    client = platform.client()
    whole = client.chat.completions.create(model=DEMO, messages=HELLO, temperature=0, max_tokens=60)
    chunks = list(client.chat.completions.create(model=DEMO, messages=HELLO, temperature=0, max_tokens=60, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_with_usage_ends_with_a_chunk_without_choices(platform: Platform) -> None:
    chunks = list(
        platform.client().chat.completions.create(
            model=SYNTHETIC, messages=HELLO, max_tokens=7, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 7
    assert chunks[-2].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_several_choices_stops_and_limits(platform: Platform) -> None:
    client = platform.client()
    several = client.chat.completions.create(model=DEMO, messages=HELLO, n=3, max_tokens=5)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert all(choice.finish_reason in ("length", "stop") for choice in several.choices)
    counted: Any = [{"role": "user", "content": "Count from 1 to 10."}]
    whole = client.chat.completions.create(model=DEMO, messages=counted, temperature=0, max_tokens=80)
    text = whole.choices[0].message.content or ""
    assert "7" in text
    stopped = client.chat.completions.create(model=DEMO, messages=counted, temperature=0, max_tokens=80, stop=["7"])
    assert stopped.choices[0].message.content == text.partition("7")[0]
    assert stopped.choices[0].finish_reason == "stop"


def test_legacy_completion(platform: Platform) -> None:
    client = platform.client()
    answer = client.completions.create(model=DEMO, prompt="The capital of France is", max_tokens=8, temperature=0)
    assert answer.object == "text_completion"
    assert "Paris" in answer.choices[0].text
    pieces = list(
        client.completions.create(
            model=DEMO, prompt="The capital of France is", max_tokens=8, temperature=0, stream=True
        )
    )
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text


def test_embeddings_as_floats_and_base64_agree(platform: Platform) -> None:
    client = platform.client()
    default = client.embeddings.create(model=DEMO, input=["Hello there", "Good morning"])  # the SDK asks for base64
    assert [item.index for item in default.data] == [0, 1]
    floats = client.embeddings.create(model=DEMO, input="Hello there", encoding_format="float").data[0].embedding
    assert math.isclose(sum(value * value for value in floats), 1.0, rel_tol=1e-3)
    raw = client.embeddings.with_raw_response.create(model=DEMO, input="Hello there", encoding_format="base64")
    packed = base64.b64decode(json.loads(raw.content)["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(packed) // 4}f", packed)) == pytest.approx(floats, abs=1e-5)
    assert default.data[0].embedding == pytest.approx(floats, abs=1e-3)
    assert default.usage.prompt_tokens > 0


def test_models(platform: Platform) -> None:
    client = platform.client()
    assert {DEMO, SYNTHETIC} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(DEMO).object == "model"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("no-such-model")
    assert missing.value.code == "model_not_found"


def test_errors_arrive_as_the_sdks_own_classes(platform: Platform) -> None:
    client = platform.client(max_retries=0)
    with pytest.raises(openai.AuthenticationError) as unknown_key:
        platform.client(api_key="sk-wrong", max_retries=0).models.list()
    assert unknown_key.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as unknown_model:
        client.chat.completions.create(model="none", messages=HELLO)
    assert unknown_model.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad_value:
        client.chat.completions.create(model=DEMO, messages=HELLO, temperature=9)
    assert bad_value.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as not_built:
        client.chat.completions.create(model=DEMO, messages=HELLO, logprobs=True)
    assert not_built.value.code == "unsupported_parameter"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model=DEMO, messages=[{"role": "user", "content": "word " * 5000}])
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.APIStatusError) as too_large:
        client.chat.completions.create(model=DEMO, messages=[{"role": "user", "content": "x" * 5_000_000}])
    assert too_large.value.status_code == 413
    for caught in (unknown_key, unknown_model, bad_value, not_built, too_long, too_large):
        assert caught.value.request_id
        assert caught.value.message
