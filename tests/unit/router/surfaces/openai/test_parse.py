"""OpenAI bodies: what is taken, what is refused and with which parameter, and that nothing is ever a 500."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import Reason, UplionError
from common.identity import Identity
from common.operations import OPERATIONS, Dialect
from router.surfaces.openai.parse import PARSERS, OpenAIRequest, parse_chat, parse_completion, parse_embedding

IDENTITY = Identity("acme", "key1", "res1", "m", "default", 100, 60.0, "r1")
HELLO = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> OpenAIRequest:
    return parse_chat(json.dumps({"model": "m", "messages": HELLO, **fields}).encode(), IDENTITY)


def completion(**fields: Any) -> OpenAIRequest:
    return parse_completion(json.dumps({"model": "m", "prompt": "hi", **fields}).encode(), IDENTITY)


def embedding(**fields: Any) -> OpenAIRequest:
    return parse_embedding(json.dumps({"model": "m", "input": "hi", **fields}).encode(), IDENTITY)


def refused(parse: Any, **fields: Any) -> UplionError:
    with pytest.raises(UplionError) as caught:
        parse(**fields)
    assert caught.value.reason.http_status == 400
    return caught.value


def test_every_operation_that_runs_a_model_has_a_parser() -> None:
    inferring = {each.rpc_name for each in OPERATIONS if each.dialect is Dialect.OPENAI and each.reserves}
    assert set(PARSERS) == inferring


def test_every_sampling_field_reaches_the_worker() -> None:
    request = chat(
        max_tokens=9,
        temperature=0.5,
        top_p=0.25,
        top_k=40,
        n=3,
        stop=["a", "b"],
        seed=-7,
        frequency_penalty=1.5,
        presence_penalty=-0.5,
    )
    sampling = request.job.run.sampling
    assert (sampling.max_output_tokens, sampling.top_k, sampling.seed, sampling.choices) == (9, 40, -7, 3)
    assert (sampling.temperature, sampling.top_p) == (0.5, 0.25)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (1.5, -0.5)
    assert list(sampling.stop) == ["a", "b"]
    assert request.job.choices == 3


def test_unset_sampling_stays_unset() -> None:
    sampling = chat().job.run.sampling
    assert not sampling.HasField("temperature")
    assert not sampling.HasField("top_p")
    assert not sampling.HasField("seed")
    assert not sampling.HasField("choices")


@pytest.mark.parametrize(("asked", "most"), [({}, 100), ({"max_tokens": 500}, 100), ({"max_completion_tokens": 5}, 5)])
def test_output_tokens_are_capped_by_the_callers_limit(asked: dict[str, int], most: int) -> None:
    assert chat(**asked).job.run.sampling.max_output_tokens == most


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    assert chat(max_tokens=50, max_completion_tokens=20).job.run.sampling.max_output_tokens == 20


def test_the_legacy_api_generates_16_tokens_by_default() -> None:
    assert completion().job.run.sampling.max_output_tokens == 16


def test_text_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(messages=[{"role": "user", "content": parts, "name": "joe"}])
    assert json.loads(request.job.run.chat.messages_json) == [{"role": "user", "content": "a\nb", "name": "joe"}]


def test_what_was_checked_is_what_the_worker_gets() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"first","content":"second","junk":{"a":1}}]}'
    assert json.loads(parse_chat(body, IDENTITY).job.run.chat.messages_json) == [{"role": "user", "content": "second"}]


def test_unknown_fields_and_harmless_ones_are_taken() -> None:
    chat(
        user="u",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        tools=[],
        tool_choice="auto",
        parallel_tool_calls=True,
        response_format={"type": "text"},
        logprobs=False,
        logit_bias={},
        temperature=None,
        stop=None,
        stream=None,
        reasoning_effort="low",
        anything={"deep": [1, 2, {"x": None}]},
    )
    embedding(user="u", encoding_format="base64", whatever=1)
    completion(echo=False, suffix="", best_of=1, logprobs=None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"prediction": {}}, "prediction"),
        ({"n": 9}, "n"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
def test_what_is_not_built_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refused(chat, **fields)
    assert (error.reason, error.param) == (Reason.UNSUPPORTED_PARAMETER, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name"),
        ({"messages": HELLO * 5000}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 10**400}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": ["x" * 2000]}, "stop"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": 5}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 5}}, "include_usage"),
        ({"user": 5}, "user"),
        ({"metadata": []}, "metadata"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": "other"}, "model"),
    ],
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refused(chat, **fields)
    assert (error.reason, error.param) == (Reason.INVALID_REQUEST, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**32]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1] * 300_001}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 0}, "logprobs"),
    ],
)
def test_completions_refuse_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(completion, **fields).param == param


@pytest.mark.parametrize("prompt", ["hi", ["hi"]])
def test_a_completion_takes_a_text(prompt: object) -> None:
    assert completion(prompt=prompt).job.run.completion.text == "hi"


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2]]])
def test_a_completion_takes_tokens(prompt: object) -> None:
    assert list(completion(prompt=prompt).job.run.completion.tokens.ids) == [1, 2]


@pytest.mark.parametrize(
    ("value", "texts", "tokens"),
    [("a", ["a"], []), (["a", "b"], ["a", "b"], []), ([1, 2], [], [[1, 2]]), ([[1], [2, 3]], [], [[1], [2, 3]])],
)
def test_embeddings_take_every_form_of_input(value: object, texts: list[str], tokens: list[list[int]]) -> None:
    items = embedding(input=value).job.run.embedding.items
    assert [item.text for item in items if item.HasField("text")] == texts
    assert [list(item.tokens.ids) for item in items if item.HasField("tokens")] == tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], "a"]}, "input[1]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"encoding_format": []}, "encoding_format"),
        ({"dimensions": 5}, "dimensions"),
    ],
)
def test_embeddings_refuse_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(embedding, **fields).param == param


HOSTILE = {
    "empty": b"",
    "not json": b"{",
    "array": b"[]",
    "string": b'"x"',
    "trailing": b'{"model":"m","messages":[{"role":"user","content":"x"}]} x',
    "byte order mark": b'\xef\xbb\xbf{"model":"m"}',
    "bad utf-8": b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
    "bad utf-8 in model": b'{"model":"\xff"}',
    "raw surrogate": b'{"model":"m","x":"\xed\xa0\x80"}',
    "lone surrogate": b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
    "lone low surrogate": b'{"model":"m","messages":[{"role":"user","content":"\\udc00x"}]}',
    "NaN": b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    "Infinity": b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":Infinity}',
    "too large a float": b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
    "400 digits": b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":1' + b"0" * 400 + b"}",
    "100000 digits": b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":1' + b"0" * 100_000 + b"}",
    "depth 100": b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":' + b"[" * 100 + b"]" * 100 + b"}",
    "depth 1000": b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":' + b"[" * 1000 + b"]" * 1000 + b"}",
    "depth 100000": b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "open depth 100000": b'{"a":' * 100_000,
    "deep in a message": b'{"model":"m","messages":[{"role":"user","content":"x","y":' + b"[" * 99 + b"]" * 99 + b"}]}",
    "two models": b'{"model":"m","messages":[{"role":"user","content":"x"}],"model":"other"}',
    "too many keys": b'{"model":"m",' + b",".join(b'"k%d":1' % i for i in range(250_000)) + b"}",
    "too many values": b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":[' + b"1," * 600_000 + b"1]}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_a_quick_400(name: str) -> None:
    spent: list[float] = []
    for _ in range(3):  # the best of three: the machine may be busy with others
        started = time.process_time()
        with pytest.raises(UplionError) as caught:
            parse_chat(HOSTILE[name], IDENTITY)
        spent.append(time.process_time() - started)
        assert caught.value.reason.http_status == 400
    assert min(spent) < 0.3


def test_a_long_text_full_of_json_is_not_taken_for_a_bomb() -> None:
    text = json.dumps([{"key": index} for index in range(150_000)])
    assert chat(messages=[{"role": "user", "content": text}]).job.estimated_tokens > 100_000


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_FIELDS = [
    "model messages prompt input max_tokens max_completion_tokens temperature top_p top_k n stop seed stream",
    "stream_options presence_penalty frequency_penalty user metadata store tools tool_choice functions logprobs",
    "top_logprobs logit_bias response_format modalities best_of echo suffix encoding_format dimensions x",
]
_MESSAGE = st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls", "x"]), _JSON, max_size=4)
_VALUES = _JSON | st.lists(_MESSAGE, max_size=3) | st.just(HELLO)
_BODIES = st.dictionaries(st.sampled_from(" ".join(_FIELDS).split()), _VALUES, max_size=8)


def _parses_or_refuses(data: bytes) -> None:
    for parse in (parse_chat, parse_completion, parse_embedding):
        try:
            request = parse(data, IDENTITY)
        except UplionError as error:
            assert error.reason.http_status == 400
        else:
            request.job.run.SerializeToString()


@settings(max_examples=120, deadline=None)
@given(body=_BODIES, valid=st.booleans())
def test_any_json_object_is_taken_or_a_400(body: dict[str, Any], valid: bool) -> None:
    if valid:
        body = {"model": "m", "messages": HELLO, "prompt": "x", "input": "x", **body}
    _parses_or_refuses(json.dumps(body).encode("utf-8", "surrogatepass"))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=64), cut=st.integers(0, 60))
def test_any_bytes_are_taken_or_a_400(data: bytes, cut: int) -> None:
    good = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
    _parses_or_refuses(good[:cut] + data + good[cut:])
    _parses_or_refuses(data)
