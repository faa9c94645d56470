"""A worker that dies in the middle: the client sees one unbroken stream, and every attempt is counted once."""

import os
import signal
from collections.abc import Iterator

import httpx2

from tests.e2e.platform import REPOSITORY, SYNTHETIC, Platform, Up, until


def _deltas(platform: Platform, tokens: int) -> Iterator[tuple[str, str]]:
    """(request id, text) of each chunk."""
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
        timeout=30,
    ) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield answer.headers["x-request-id"], line[6:]


def test_killing_the_worker_in_mid_stream_breaks_nothing(start_platform: Up) -> None:
    import json

    platform = start_platform("-f", str(REPOSITORY / "tests/e2e/synthetic.yaml"))
    undisturbed = "".join(
        json.loads(line)["choices"][0]["delta"].get("content") or ""
        for _, line in _deltas(platform, 60)
        if line != "[DONE]" and json.loads(line)["choices"]
    )

    def busy_worker() -> int | None:
        (model,) = [model for model in platform.cli("models", "list") if model["name"] == SYNTHETIC]
        busy = [worker for worker in model["workers"] if worker["slots_free"] < worker["slots_total"]]
        return int(busy[0]["pid"]) if busy else None

    text, lines, killed, request_id = "", [], False, ""
    for request_id, line in _deltas(platform, 250):
        lines.append(line)
        if line != "[DONE]":
            chunk = json.loads(line)
            assert "error" not in chunk, chunk
            if chunk["choices"]:
                text += chunk["choices"][0]["delta"].get("content") or ""
        if not killed and len(lines) > 20:
            os.kill(until(busy_worker), signal.SIGKILL)
            killed = True
    assert lines[-1] == "[DONE]"
    assert text.startswith(undisturbed)  # the synthetic text is the same for every request: nothing twice, nothing lost
    assert json.loads(lines[-2])["usage"]["completion_tokens"] == 250

    import asyncio

    import asyncpg

    async def rows() -> list[tuple[int, str]]:
        connection = await asyncpg.connect(platform.facts["postgres_url"], timeout=10)
        try:
            found = await connection.fetch(
                "SELECT attempt, output_tokens FROM usage_events WHERE request_id = $1 ORDER BY attempt", request_id
            )
            return [(row["attempt"], row["output_tokens"]) for row in found]
        finally:
            await connection.close()

    counted = until(lambda: (found := asyncio.run(rows())) and len(found) == 2 and found)
    assert [attempt for attempt, _ in counted] == [1, 2]
    assert sum(tokens for _, tokens in counted) == 250  # each token billed once, by the attempt that made it
