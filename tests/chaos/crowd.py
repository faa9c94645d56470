"""Clients that retry nothing and write down what each request was told."""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.kit.platform import SYNTHETIC

_REST_SECONDS = 0.05  # after a failure: a refused client does not ask again at once
_TIMEOUT_SECONDS = 60.0


@dataclass(slots=True)
class Told:
    """One request as its client saw it."""

    fate: str  # "ok", "failed" (a typed error) or "unknown" (the connection broke)
    request_id: str = ""
    status: int = 0
    stream: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    sent_at: float = 0.0  # time.monotonic
    ended_at: float = 0.0
    error: str = ""


@dataclass
class Crowd:
    """Closed-loop clients on keep-alive connections, half of them streaming."""

    base_url: str
    key: str
    seed: int
    told: list[Told] = field(default_factory=list)

    async def run(self, clients: int, stop: asyncio.Event) -> None:
        """Until `stop`; every request that was begun is finished."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(self._client(number, stop), name=f"client {number}")

    def counts(self) -> Counter[str]:
        return Counter(told.fate for told in self.told)

    async def _client(self, number: int, stop: asyncio.Event) -> None:
        chance = random.Random(self.seed * 1000 + number)
        stream = number % 2 == 0
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not stop.is_set():
            told = Told("unknown", stream=stream, sent_at=time.monotonic())
            try:
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    if streams is None:
                        parts = urlsplit(self.base_url)
                        streams = await asyncio.open_connection(parts.hostname, parts.port)
                    tokens = chance.randrange(5, 100) if stream else chance.randrange(1, 10)
                    keep = await _ask(streams, self._request(tokens, stream=stream), told)
            except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError, ValueError) as problem:
                told.error = repr(problem)
                keep = False
            told.ended_at = time.monotonic()
            self.told.append(told)
            if not keep and streams is not None:
                streams[1].close()
                streams = None
            if told.fate != "ok":
                await asyncio.sleep(_REST_SECONDS)
        if streams is not None:
            streams[1].close()

    def _request(self, tokens: int, *, stream: bool) -> bytes:
        body: dict[str, Any] = {
            "model": SYNTHETIC,
            "messages": [{"role": "user", "content": "Hello!"}],
            "max_tokens": tokens,
        }
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        content = json.dumps(body).encode()
        parts = urlsplit(self.base_url)
        head = (
            f"POST {parts.path}/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\n"
            f"authorization: Bearer {self.key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content


async def _ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: bytes, told: Told) -> bool:
    """Fills `told`; whether the connection can be used again."""
    reader, writer = streams
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    told.status, told.request_id = int(first.split()[1]), headers.get("x-request-id", "")
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    if told.status != 200:
        told.fate, told.error = "failed", body[:200].decode("utf-8", "replace")
    elif told.stream:
        _judge_stream(body, told)
    else:
        _count(json.loads(body)["usage"], told)
    return headers.get("connection") != "close"


def _judge_stream(body: bytes, told: Told) -> None:
    frames = [frame[6:] for frame in body.split(b"\n\n") if frame.startswith(b"data: ")]
    if not frames or frames[-1] != b"[DONE]":
        told.error = "no [DONE]"
        return
    chunks = [json.loads(frame) for frame in frames[:-1]]
    errors = [chunk["error"] for chunk in chunks if "error" in chunk]
    if errors:
        told.fate, told.error = "failed", str(errors[0])
    else:
        _count(chunks[-1]["usage"], told)


def _count(usage: dict[str, int], told: Told) -> None:
    told.fate = "ok"
    told.input_tokens, told.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
