"""Every admitted request is counted once: the client's answer, the stream, the ledger and `uplion usage` agree."""

import asyncio
from typing import Any

import asyncpg
import httpx2
import openai

from common import names
from messaging.bus import connect_bus
from tests.kit.platform import DEMO, SYNTHETIC, Platform
from tests.kit.until import until_sync

HELLO: Any = [{"role": "user", "content": "Hello!"}]


def _rows(platform: Platform, sql: str, *arguments: object) -> list[dict[str, Any]]:
    async def query() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(platform.facts["postgres_url"], timeout=60)
        try:
            return [dict(row) for row in await connection.fetch(sql, *arguments)]
        finally:
            await connection.close()

    return asyncio.run(query())


def _usage_events(platform: Platform) -> int:
    async def count() -> int:
        async with connect_bus(platform.facts["nats_url"], "test") as bus:
            return (await bus.js.stream_info(names.STREAM_USAGE)).state.messages

    return asyncio.run(count())


def _usage(platform: Platform, key: str) -> dict[str, Any] | None:
    rows = platform.cli("usage", "--by", "key")
    return next((row for row in rows if row["group"] == key), None)


def test_usage_soon_shows_what_the_final_chunk_said(platform: Platform) -> None:
    created = platform.cli("keys", "create")
    client = platform.client(api_key=created["key"])
    chunks = list(
        client.chat.completions.create(
            model=DEMO, messages=HELLO, stream=True, max_tokens=40, stream_options={"include_usage": True}
        )
    )
    told = chunks[-1].usage
    assert told is not None
    row = until_sync(lambda: _usage(platform, created["id"]))
    assert (row["requests"], row["input_tokens"], row["output_tokens"]) == (
        1,
        told.prompt_tokens,
        told.completion_tokens,
    )


def test_a_client_that_disconnects_is_billed_for_what_was_made_until_then(platform: Platform) -> None:
    created = platform.cli("keys", "create")
    headers = {"authorization": f"Bearer {created['key']}"}
    body = {"model": SYNTHETIC, "messages": HELLO, "stream": True, "max_tokens": 4000}
    with (
        httpx2.Client(timeout=60) as client,
        client.stream("POST", f"{platform.facts['base_url']}/chat/completions", json=body, headers=headers) as answer,
    ):
        request_id = answer.headers["x-request-id"]
        seen = 0
        for line in answer.iter_lines():
            seen += line.startswith("data: ")
            if seen == 20:
                break
    (row,) = until_sync(lambda: _rows(platform, "SELECT * FROM usage_events WHERE request_id = $1", request_id))
    assert 15 <= row["output_tokens"] < 2000  # 50 tokens/s: it was stopped soon, not after 80 s
    assert row["key"] == created["id"]

    def slots_are_free() -> bool:
        models = {model["name"]: model for model in platform.cli("models", "list")}
        return all(worker["slots_free"] == worker["slots_total"] for worker in models[SYNTHETIC]["workers"])

    until_sync(slots_are_free)


def test_refused_requests_are_counted_too(platform: Platform) -> None:
    created = platform.cli("keys", "create")
    client = platform.client(api_key=created["key"], max_retries=0)
    for arguments in ({"model": "none"}, {"model": DEMO, "temperature": 9}):
        try:
            client.chat.completions.create(messages=HELLO, **arguments)
        except openai.APIStatusError as refused:
            assert refused.status_code in (400, 404)
    rows = until_sync(
        lambda: (
            (found := _rows(platform, "SELECT * FROM usage_events WHERE key = $1", created["id"]))
            and len(found) == 2
            and found
        )
    )
    assert all(row["output_tokens"] == 0 for row in rows)


def test_200_streams_at_once_end_correctly_and_are_counted_once(platform: Platform) -> None:
    created = platform.cli("keys", "create")
    events_before = until_sync(lambda: _settled(platform))

    async def one(client: openai.AsyncOpenAI, number: int) -> tuple[str, int, int]:
        text, usage = "", None
        stream = await client.chat.completions.create(
            model=DEMO,
            messages=[{"role": "user", "content": f"What is {number % 20} + {number % 7}?"}],
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
        finish = None
        async for chunk in stream:
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                finish = chunk.choices[0].finish_reason or finish
            usage = chunk.usage or usage
        assert finish in ("stop", "length")
        assert text
        assert usage is not None
        return str(finish), usage.prompt_tokens, usage.completion_tokens

    async def all_of_them() -> list[tuple[str, int, int]]:
        limits = httpx2.Limits(max_connections=250, max_keepalive_connections=250)
        async with (
            httpx2.AsyncClient(limits=limits, timeout=120) as http,
            platform.async_client(api_key=created["key"], max_retries=0, timeout=120, http_client=http) as client,
        ):
            return await asyncio.gather(*(one(client, number) for number in range(200)))

    told = asyncio.run(all_of_them())
    row = until_sync(lambda: (found := _usage(platform, created["id"])) and found["requests"] == 200 and found)
    assert row["input_tokens"] == sum(prompt for _, prompt, _ in told)
    assert row["output_tokens"] == sum(completion for _, _, completion in told)
    (count,) = _rows(
        platform,
        "SELECT count(*) AS n, count(*) FILTER (WHERE last) AS last FROM usage_events WHERE key = $1",
        created["id"],
    )
    assert count["last"] == 200
    assert _settled(platform) - events_before == count["n"]  # more if a busy machine was too slow for an offer


def test_everything_that_counts_agrees(platform: Platform) -> None:
    until_sync(lambda: _settled(platform))
    report = platform.cli("reconcile")
    assert report["clean"]
    assert report["stream_events"] > 0
    assert platform.cli("reconcile", "--last")["run_time"] >= report["run_time"]


def _settled(platform: Platform) -> int:
    """How many events are in the stream once the ledger has them all; 0 while it has not."""
    events = _usage_events(platform)
    (row,) = _rows(platform, "SELECT count(*) AS n FROM usage_events")
    return events if row["n"] == events else 0
