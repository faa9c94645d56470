"""The engine `openai` against an upstream that does what real ones have done."""

import asyncio
import json
import struct
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP

from common.deltas import Reasoning, Refusal, ToolCall
from common.errors import Reason, UplionError
from common.sampling import Sampling
from common.settings import SettingsError
from inference.engines.engine import Chat, Generation, Text, Tokens
from inference.engines.output import Output
from inference.engines.upstream.engine import UpstreamEngine

HELLO = Chat([{"role": "user", "content": "Hello"}])
WAIT_SECONDS = 60.0


def chunk(text="", finish=None, index=0, **more):
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return json.dumps({"choices": [choice], **more})


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
PLAIN = [chunk("Hel"), chunk("lo"), chunk("", "stop"), json.dumps({"choices": [], "usage": USAGE}), "[DONE]"]


class Upstream:
    """Answers every request with `parts`, and keeps what it was asked."""

    def __init__(self):
        self.status = "200 OK"
        self.headers = ""
        self.parts = [f"data: {data}\n\n".encode() for data in PLAIN]
        self.hang = False
        self.asked = []
        self.gone = asyncio.Event()

    async def serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-le")
        )
        self.asked.append(
            (head.split(b"\r\n")[0].decode(), head.decode(), json.loads(await reader.readexactly(length)))
        )
        writer.write(f"HTTP/1.1 {self.status}\r\nconnection: close\r\n{self.headers}\r\n".encode())
        for part in self.parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if self.hang:
            await reader.read()
            self.gone.set()
        writer.close()


@asynccontextmanager
async def served(**options):
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    defaults = {"model": "big", "key": "secret", "slots": 4, "context_tokens": None, "timeout_seconds": 60.0}
    async with server:
        engine = UpstreamEngine(url=f"http://127.0.0.1:{port}/v1", **{**defaults, **options})
        try:
            yield upstream, engine
        finally:
            await engine.close()


async def collect(engine, prompt=HELLO, sampling=None):
    output = Output()
    await engine.generate(Generation("g", prompt, sampling or Sampling()), output)
    texts: dict[int, str] = {}
    finishes: dict[int, Any] = {}
    async with asyncio.timeout(WAIT_SECONDS):
        while not output.drained:
            for delta in await output.take():
                texts[delta.index] = texts.get(delta.index, "") + delta.text
                finishes[delta.index] = delta.finish_reason
    return texts, finishes, output


async def test_streams_what_the_upstream_says_and_counts_as_it_counts():
    async with served() as (upstream, engine):
        texts, finishes, output = await collect(engine, sampling=Sampling(max_output_tokens=5, temperature=0.0, seed=3))
        assert (texts, finishes) == ({0: "Hello"}, {0: FINISH_REASON_STOP})
        assert (output.input_tokens, output.cached_tokens, output.output_tokens) == (7, 4, 3)
        line, head, body = upstream.asked[0]
        assert line == "POST /v1/chat/completions HTTP/1.1"
        assert "authorization: bearer secret" in head.lower()
        assert body == {
            "model": "big",
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 5,
            "temperature": 0.0,
            "seed": 3,
        }


@pytest.mark.parametrize(
    "stream",
    [
        "".join(f"data:{data}\n\n" for data in PLAIN),
        "".join(f": keep-alive\r\n\r\ndata: {data}\r\n\r\n" for data in PLAIN),
        "".join(f"event: x\nid: 1\ndata: {data}\n\n" for data in PLAIN),
        "data: " + PLAIN[0].replace(", ", ",\ndata: ") + "\n\n" + "".join(f"data: {data}\n\n" for data in PLAIN[1:]),
        "".join(f"data: {data}\n\n" for data in [*PLAIN[:2], chunk("", "stop", usage=USAGE)]) + "data: [DONE]",
    ],
    ids=["no space", "crlf and comments", "other fields", "data in lines", "usage with the finish"],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_reads_streams_as_they_come(stream, size):
    async with served() as (upstream, engine):
        raw = stream.encode()
        upstream.parts = [raw[at : at + size] for at in range(0, len(raw), size)]
        texts, finishes, output = await collect(engine)
        assert (texts, finishes) == ({0: "Hello"}, {0: FINISH_REASON_STOP})
        assert output.output_tokens == 3


async def test_completions_and_choices():
    async with served() as (upstream, engine):
        events = [{"index": 0, "text": "a"}, {"index": 1, "text": "b", "finish_reason": "length"}]
        last = [{"index": 0, "text": "", "finish_reason": "stop"}]
        upstream.parts = [f"data: {json.dumps({'choices': choices})}\n\n".encode() for choices in (events, last)]
        texts, finishes, output = await collect(engine, Text("Once"), Sampling(choices=2))
        assert (texts, finishes) == ({0: "a", 1: "b"}, {0: FINISH_REASON_STOP, 1: FINISH_REASON_LENGTH})
        assert (output.input_tokens, output.output_tokens) == (2, 2), "estimated, since it said nothing"
        assert upstream.asked[0][0].startswith("POST /v1/completions ")


async def test_every_kind_of_content_is_a_part_of_its_own_kind():
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}}
    deltas = [
        {"role": "assistant", "content": None},
        {"reasoning_content": "Let "},
        {"reasoning": "me see."},
        {"content": "Hel"},
        {"content": "lo", "tool_calls": [call]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": " 1}"}}]},
        {"refusal": "No."},
        {},
    ]
    async with served() as (upstream, engine):
        choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        choices[-1]["finish_reason"] = "tool_calls"
        upstream.parts = [f"data: {json.dumps({'choices': [choice]})}\n\n".encode() for choice in choices]
        output = Output()
        await engine.generate(Generation("g", HELLO, Sampling()), output)
        async with asyncio.timeout(WAIT_SECONDS):
            await output.ended_within(None)
        (delta,) = await output.take()
    assert delta.parts == [
        Reasoning("Let me see."),
        "Hello",
        ToolCall(0, "call_1", "add", '{"a": 1}'),
        Refusal("No."),
    ]
    assert (delta.text, delta.finish_reason) == ("Hello", FINISH_REASON_STOP)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        ("400 Bad Request", b'{"error":{"message":"no such role"}}', Reason.INVALID_REQUEST),
        ("401 Unauthorized", b"{}", Reason.UPSTREAM_FAILED),
        ("302 Found", b"", Reason.UPSTREAM_FAILED),
        ("429 Too Many Requests", b"", Reason.OVERLOADED),
        ("500 Oops", b"secret trace", Reason.UPSTREAM_FAILED),
        ("200 OK", b"", Reason.UPSTREAM_FAILED),
        ("200 OK", b"data: not json\n\n", Reason.UPSTREAM_FAILED),
        ("200 OK", b"data: [1]\n\n", Reason.UPSTREAM_FAILED),
        ("200 OK", b'data: {"choices": [{"delta": "secret"}]}\n\n', Reason.UPSTREAM_FAILED),
        ("200 OK", f"data: {chunk('Hel')}\n\n".encode(), Reason.UPSTREAM_FAILED),
        ("200 OK", f"data: {chunk('Hel')}\n\ndata: [DONE]\n\n".encode(), Reason.UPSTREAM_FAILED),
        ("200 OK", b'data: {"error": {"message": "secret trace"}}\n\n', Reason.UPSTREAM_FAILED),
        ("200 OK", b"data: " + b"x" * 5_000_000, Reason.UPSTREAM_FAILED),
    ],
)
async def test_failures_have_a_reason_and_tell_no_secrets(status, body, reason):
    async with served() as (upstream, engine):
        upstream.status, upstream.parts = status, [body]
        upstream.headers = "location: http://127.0.0.1:1/\r\nretry-after: 7\r\n"
        with pytest.raises(UplionError) as caught:
            await collect(engine)
        assert caught.value.reason is reason
        assert "secret" not in caught.value.message
        if reason is Reason.OVERLOADED:
            assert caught.value.retry_after_seconds == 7
        if reason is Reason.INVALID_REQUEST:
            assert "no such role" in caught.value.message


async def test_silence_is_a_failure():
    async with served(timeout_seconds=0.2) as (upstream, engine):
        upstream.parts, upstream.hang = upstream.parts[:1], True
        with pytest.raises(UplionError) as caught:
            await collect(engine)
        assert caught.value.reason is Reason.UPSTREAM_FAILED


async def test_nobody_there_is_a_failure():
    async with served() as (_, engine):
        engine._client.base_url = "http://127.0.0.1:1/"
        with pytest.raises(UplionError) as caught:
            await collect(engine)
        assert caught.value.reason is Reason.UPSTREAM_FAILED


async def test_cancel_hangs_up():
    async with served() as (upstream, engine):
        upstream.parts, upstream.hang = upstream.parts[:1], True
        output = Output()
        await engine.generate(Generation("g", HELLO, Sampling()), output)
        await output.take()
        engine.cancel("g")
        async with asyncio.timeout(WAIT_SECONDS):
            await upstream.gone.wait()
        assert engine.stats().running == 0
        assert output.output_tokens == 1


async def test_embeds_to_unit_length_in_order():
    async with served() as (upstream, engine):
        data = [{"index": 1, "embedding": [0.0, 2.0]}, {"index": 0, "embedding": [3.0, 4.0]}]
        upstream.parts = [json.dumps({"data": data, "usage": {"prompt_tokens": 9}}).encode()]
        vectors = await engine.embed("e", [Text("a"), Text("b")])
        assert [struct.unpack("<2f", value) for value in vectors.values] == [pytest.approx((0.6, 0.8)), (0.0, 1.0)]
        assert vectors.input_tokens == 9
        assert upstream.asked[0][2] == {"model": "big", "input": ["a", "b"], "encoding_format": "float"}
        with pytest.raises(UplionError):
            await engine.embed("e", [Text("a")])
        with pytest.raises(UplionError):
            await engine.embed("e", [Text("a"), Tokens([1])])


def test_a_base_url_is_needed():
    with pytest.raises(SettingsError, match="UPLION_UPSTREAM_URL"):
        UpstreamEngine(model="m", url="ftp://x", key="", slots=1, context_tokens=None, timeout_seconds=1)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("99999999999999999999", None),
        ("999999999", 3600),
        ("0", 0),
        ("-5", None),
        ("1.5", None),
        ("nan", None),
        ("²", None),
    ],
)
async def test_the_time_after_which_to_retry_is_one(given, seconds):
    async with served() as (upstream, engine):
        upstream.status, upstream.parts = "429 Too Many Requests", [b"{}"]
        upstream.headers = f"retry-after: {given}\r\n"
        with pytest.raises(UplionError) as caught:
            await collect(engine)
        assert caught.value.reason is Reason.OVERLOADED
        assert caught.value.retry_after_seconds == seconds
