"""S5: what clients say rests in no file, log, table, key of Valkey or message of NATS. (Spans: test_tracing.)"""

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import openai
from nats.js.errors import NotFoundError
from redis.asyncio import Redis

from messaging.bus import connect_bus
from tests.kit.platform import DEMO, Platform
from tests.kit.until import until_sync

CANARY = "xyzzy-canary-7351"
_MESSAGES_MOST = 2_000  # of each stream, the newest


async def tables(url: str) -> str:
    """Every row of every table, as text."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        names = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        rows = [await connection.fetch(f'SELECT t::text FROM "{name[0]}" AS t') for name in names]
        return "\n".join(row[0] for found in rows for row in found)
    finally:
        await connection.close()


async def valkey(url: str) -> str:
    """Every key with its value."""
    async with Redis.from_url(url) as redis:
        read: dict[Any, Any] = {
            b"string": redis.get,
            b"hash": redis.hgetall,
            b"set": redis.smembers,
            b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
            b"list": lambda key: redis.lrange(key, 0, -1),
            b"none": redis.get,  # its time was over meanwhile
        }
        return "\n".join([f"{key} {await read[await redis.type(key)](key)}" async for key in redis.scan_iter()])


async def streams(url: str) -> str:
    """The messages of every stream and bucket, with their subjects and headers."""
    found = []
    async with connect_bus(url, "test") as bus:
        for stream in await bus.js.streams_info():
            name, state = stream.config.name or "", stream.state
            for sequence in range(max(1, state.first_seq, state.last_seq - _MESSAGES_MOST), state.last_seq + 1):
                try:
                    message = await bus.js.get_msg(name, seq=sequence)
                except NotFoundError:
                    continue
                found.append(f"{message.subject} {message.headers} {message.data!r}")
    return "\n".join(found)


def test_no_prompt_text_rests_anywhere(platform: Platform) -> None:
    created = platform.cli("keys", "create")
    client = platform.client(api_key=created["key"], max_retries=0)
    messages: Any = [{"role": "system", "content": CANARY}, {"role": "user", "content": f"{CANARY}?"}]
    calls: list[dict[str, Any]] = [
        {"model": DEMO, "max_tokens": 5},
        {"model": DEMO, "max_tokens": 5, "stream": True, "stop": [CANARY], "user": CANARY},
        {"model": DEMO, "temperature": 9},
        {"model": "no-such-model"},
    ]
    for fields in calls:
        try:
            answer = client.chat.completions.create(messages=messages, **fields)
            if fields.get("stream"):
                list(answer)
        except openai.APIStatusError as refused:
            assert refused.status_code in (400, 404)
    client.completions.create(model=DEMO, prompt=CANARY, max_tokens=5)
    url = platform.facts["postgres_url"]

    def stored() -> str:
        text = asyncio.run(tables(url))
        return text if text.count(created["id"]) >= len(calls) else ""

    found = {
        "Postgres": until_sync(stored, 60),
        "Valkey": asyncio.run(valkey(platform.facts["redis_url"])),
        "NATS": asyncio.run(streams(platform.facts["nats_url"])),
    }
    for store, text in found.items():
        assert created["id"] in text, f"{store} was not read"
        assert CANARY not in text, store
    hits = []
    for folder, _, files in os.walk(platform.state):
        for path in (Path(folder, file) for file in files):
            with suppress(FileNotFoundError):  # of servers that run
                if path.is_file() and CANARY.encode() in path.read_bytes():
                    hits.append(path)
    assert hits == []
