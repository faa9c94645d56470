"""A worker that dies in the middle: the client sees one unbroken stream, and every attempt is counted once."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import asyncpg
import httpx2
import nats.errors
from uplion.dispatch.v1.worker_state_pb2 import WorkerState

from common import names
from messaging.bus import connect_bus
from tests.kit.platform import REPOSITORY, SYNTHETIC, Platform, Up
from tests.kit.until import until_sync

_TOKENS = 1500  # 30 s, and workers say every 3 s whether they are busy


def _stream(platform: Platform, tokens: int) -> Iterator[str]:
    """The answer's request id, then the data of each frame."""
    body = {
        "model": SYNTHETIC,
        "messages": [{"role": "user", "content": "Hello!"}],
        "stream": True,
        "max_tokens": tokens,
        "stream_options": {"include_usage": True},
    }
    with httpx2.stream(
        "POST",
        f"{platform.facts['base_url']}/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {platform.facts['api_key']}"},
        timeout=120,
    ) as answer:
        yield answer.headers["x-request-id"]
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield line[6:]


def _text(frames: list[str]) -> str:
    chunks = [json.loads(frame) for frame in frames if frame != "[DONE]"]
    assert not [chunk for chunk in chunks if "error" in chunk]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def _busy_worker(platform: Platform) -> int | None:
    """The pid of a worker that says it is busy. Asked of NATS: a command takes a second to start."""

    async def ask() -> int | None:
        async with connect_bus(platform.facts["nats_url"], "test") as bus:
            with suppress(nats.errors.Error, TimeoutError):  # the next try may do
                for entry in await bus.snapshot(names.KV_WORKERS):
                    state = WorkerState.FromString(entry.value or b"")
                    if state.model == SYNTHETIC and state.slots_free < state.slots_total:
                        return state.pid
        return None

    return asyncio.run(ask())


async def _attempts(platform: Platform, request_id: str) -> list[tuple[int, int]]:
    connection = await asyncpg.connect(platform.facts["postgres_url"], timeout=60)
    try:
        sql = "SELECT attempt, output_tokens FROM usage_events WHERE request_id = $1 ORDER BY attempt"
        return [(row["attempt"], row["output_tokens"]) for row in await connection.fetch(sql, request_id)]
    finally:
        await connection.close()


def test_killing_the_worker_in_mid_stream_breaks_nothing(start_platform: Up) -> None:
    platform = start_platform("-f", str(REPOSITORY / "tests/e2e/synthetic.yaml"))
    _, *undisturbed = _stream(platform, 60)
    until_sync(lambda: _busy_worker(platform) is None)

    stream = _stream(platform, _TOKENS)
    request_id = next(stream)
    frames = [next(stream) for _ in range(20)]
    os.kill(until_sync(lambda: _busy_worker(platform)), signal.SIGKILL)
    frames += stream

    assert frames[-1] == "[DONE]"
    assert _text(frames).startswith(_text(undisturbed))  # every answer is the same text: nothing twice, nothing lost
    assert json.loads(frames[-2])["usage"]["completion_tokens"] == _TOKENS
    until_sync(lambda: len(asyncio.run(_attempts(platform, request_id))) == 2)
    counted = asyncio.run(_attempts(platform, request_id))
    assert [attempt for attempt, _ in counted] == [1, 2]
    assert sum(tokens for _, tokens in counted) == _TOKENS  # each token billed once, by the attempt that made it
