"""Texts that cannot fit, and embeddings by the thousand, beside a caller with four tokens. `make test-chaos`.

On the demo model, through the whole platform. The caller's first token may take three times what it takes alone, and
50 ms more, at the median and at the 99th percentile.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.kit.platform import DEMO, Platform, Up

pytestmark = pytest.mark.chaos

_WORDS = ["hello", "there", "how", "are", "you"]
_ALONE = 100  # requests of the caller
_LOOP_SECONDS = 10.0
_MOST_GROWTH_BYTES = 150 << 20  # of the worker, whatever it is sent: a 3 MB prompt once cost 300 MB


def _text(words: int, seed: int = 0) -> str:
    chance = random.Random(seed)
    return " ".join(chance.choice(_WORDS) for _ in range(words))


def _chat(content: str | list[dict[str, str]], **fields: Any) -> tuple[str, bytes]:
    messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
    return "chat/completions", json.dumps({"model": DEMO, "messages": messages, "max_tokens": 4, **fields}).encode()


def _embeddings(words: int) -> tuple[str, bytes]:
    return "embeddings", json.dumps({"model": DEMO, "input": [_text(words, seed) for seed in range(2048)]}).encode()


HOSTILE = {
    "words": _chat(_text(600_000)[:3_000_000]),
    "one character": _chat("a" * 3_000_000),
    "white space": _chat(" " * 3_000_000 + "a"),
    "emoji": (
        "chat/completions",
        json.dumps(
            {"model": DEMO, "messages": [{"role": "user", "content": "😀" * 700_000}]}, ensure_ascii=False
        ).encode(),
    ),
    "combining marks": _chat("a" + "\u0301" * 450_000),
    "special tokens": _chat("<|end|>" * 400_000),
    "many messages": _chat([{"role": "user", "content": "x"}] * 4096),
    "too many messages": _chat([{"role": "user", "content": "x"}] * 60_000),
    "token ids": ("completions", json.dumps({"model": DEMO, "prompt": [9] * 1_000_000}).encode()),
    "stop texts": _chat("Hi", stop=["x"] * 500_000),
    "too many embeddings": _embeddings(300),
}


@dataclass
class Caller:
    """Asks a platform over connections of its own."""

    platform: Platform
    seconds: list[float] = field(default_factory=list)  # to the first tokens

    @asynccontextmanager
    async def _asked(self, path: str, body: bytes) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
        parts = urlsplit(self.platform.facts["base_url"])
        head = (
            f"POST {parts.path}/{path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n"
            f"authorization: Bearer {self.platform.facts['api_key']}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 26)
        try:
            writer.write(head.encode() + body)
            await writer.drain()
            yield int((await reader.readuntil(b"\r\n\r\n")).split()[1]), reader
        finally:
            writer.close()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        async with self._asked(path, body) as (status, reader):
            return status, await reader.read()

    async def first_token(self) -> None:
        began = time.perf_counter()
        async with self._asked(*_chat("Hi", stream=True)) as (status, reader):
            assert status == 200
            while line := await reader.readline():
                if b'"content":"' in line and b'"content":""' not in line:
                    self.seconds.append(time.perf_counter() - began)
                    break
            await reader.read()

    def at(self, share: float) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


async def _alone(platform: Platform) -> Caller:
    caller = Caller(platform)
    for _ in range(_ALONE):
        await caller.first_token()
    print(f"\nalone: median {caller.at(0.5) * 1000:.0f} ms, p99 {caller.at(0.99) * 1000:.0f} ms")
    return caller


async def _beside(
    platform: Platform, name: str, request: tuple[str, bytes], attackers: int, seconds: float = 0.0
) -> tuple[Caller, Counter[int]]:
    """The caller's first tokens while the attackers ask, each once, or again and again for some seconds."""
    caller, told = Caller(platform), Counter[int]()
    until = time.monotonic() + seconds

    async def attack() -> None:
        while True:
            told[(await caller.post(*request))[0]] += 1
            if time.monotonic() > until:
                return

    async with asyncio.TaskGroup() as tasks:
        attacks = [tasks.create_task(attack()) for _ in range(attackers)]
        while not all(task.done() for task in attacks) or len(caller.seconds) < 3:
            await caller.first_token()
    figures = f"median {caller.at(0.5) * 1000:.0f} ms, p99 {caller.at(0.99) * 1000:.0f} ms of {len(caller.seconds)}"
    print(f"beside {attackers} x {name}: {figures}; they were told {dict(told)}")
    return caller, told


def _resident_bytes(platform: Platform) -> int:
    pid = platform.facts["pids"][f"worker/{DEMO}/0"]
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def _as_promised(beside: Caller, alone: Caller) -> bool:
    return all(beside.at(share) <= 3 * alone.at(share) + 0.05 for share in (0.5, 0.99))


@pytest.fixture
def platform(start_platform: Up) -> Platform:
    return start_platform()


def test_big_texts_stand_in_nobody_s_way(platform: Platform) -> None:
    async def scenario() -> None:
        alone = await _alone(platform)
        before = _resident_bytes(platform)
        prompts, told = await _beside(platform, "prompt of 3 MB", HOSTILE["words"], 4)
        assert told == {400: 4}
        refused, told = await _beside(platform, "2,048 embeddings of 300 tokens", HOSTILE["too many embeddings"], 1)
        assert told == {400: 1}
        taken, told = await _beside(platform, "2,048 embeddings of 90 tokens", _embeddings(90), 1)
        assert told == {200: 1}
        for name in ("words", "many messages", "too many embeddings"):
            await _beside(platform, f"{name}, in a loop", HOSTILE[name], 4, _LOOP_SECONDS)
        await _beside(platform, "2,048 embeddings of 20 tokens", _embeddings(20), 4)
        grown = _resident_bytes(platform) - before
        print(f"the worker grew by {grown >> 20} MB")
        assert grown < _MOST_GROWTH_BYTES
        assert _as_promised(prompts, alone)
        assert _as_promised(refused, alone)
        assert _as_promised(taken, alone)

    asyncio.run(scenario())


def test_hostile_texts_are_refused_soon_and_by_name(platform: Platform) -> None:
    async def scenario() -> None:
        caller = Caller(platform)
        for name, request in HOSTILE.items():
            began = time.perf_counter()
            status, data = await caller.post(*request)
            print(f"{name}: {status} after {(time.perf_counter() - began) * 1000:.0f} ms")
            assert status == (200 if name == "white space" else 400), data[:200]
            await caller.first_token()

    asyncio.run(scenario())
