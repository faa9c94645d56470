"""Rows K4 and K6: a flood of made-up keys costs little, and no usable secret rests anywhere."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis import Redis

from credentials import api_keys
from tests.kit.envoy import EdgeProcess, edge_settings
from tests.kit.gateway import PEPPER, Gateway
from tests.kit.until import until

WAITING = """
SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
WHERE NOT granted AND datname = current_database()
"""
STRANGER, GUEST = "203.0.113.7", "198.51.100.1"


def wrong_checksum() -> str:
    text = api_keys.generate().text
    return text[:-1] + ("A" if text[-1] != "A" else "B")


def malformed(noise: random.Random) -> str:
    text = api_keys.generate().text
    place = noise.randrange(len(text))
    return noise.choice(
        [text[:place], text + "x", text.replace("_", "-"), text[:place] + "." + text[place:], "sk-" + text]
    )


async def answers(port: int, texts: Iterator[str], address: str) -> list[tuple[int, float]]:
    """Status and seconds of each request, one after the other over a connection that is kept."""
    found: list[tuple[int, float]] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for text in texts:
        began = time.perf_counter()
        head = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-api-key: {text}\r\nx-forwarded-for: {address}\r\n\r\n"
        writer.write(head.encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if length:
            await reader.readexactly(int(length[0].split(b":")[1]))
        else:
            while await reader.readuntil(b"\r\n") != b"0\r\n":
                await reader.readuntil(b"\r\n")
            await reader.readuntil(b"\r\n")
        found.append((int(answer[9:12]), time.perf_counter() - began))
    writer.close()
    return found


async def flood(port: int, texts: list[str], *, address: str = STRANGER, connections: int = 8) -> list[int]:
    parts = [texts[number::connections] for number in range(connections)]
    found = await asyncio.gather(*(answers(port, iter(part), address) for part in parts))
    return [status for part in found for status, _ in part]


@asynccontextmanager
async def good_traffic(port: int, key: str) -> AsyncIterator[list[tuple[int, float]]]:
    """One guest who asks without a pause; what it was answered is there when the block has ended."""
    stop = False
    asked = answers(port, itertools.takewhile(lambda _: not stop, itertools.repeat(key)), GUEST)
    running = asyncio.create_task(asked)
    found: list[tuple[int, float]] = []
    try:
        yield found
    finally:
        stop = True
        found += await running


@pytest.fixture(scope="module")
def behind_proxy(platform: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The platform's public door behind a trusted proxy, so that strangers and guests have addresses of their own."""
    folder = tmp_path_factory.mktemp("proxied")
    ports = platform.authz.port("authz"), platform.others.port("router")
    envoy = EdgeProcess(edge_settings(*ports, folder, trusted_hops=1), folder, tmp_path_factory.getbasetemp())
    yield envoy.ports["public"]
    envoy.stop()


async def test_k4_a_flood_asks_the_database_for_well_formed_keys_alone(platform: Gateway, behind_proxy: int) -> None:
    """While the table of keys is locked, whoever asks for a key waits: typos and nonsense do not."""
    noise = random.Random(20261121)
    async with good_traffic(behind_proxy, platform.keys["api_key"]) as good:
        connection = await asyncpg.connect(platform.database_url)
        async with connection.transaction():
            await connection.execute("LOCK TABLE keys IN ACCESS EXCLUSIVE MODE")
            wrong = [wrong_checksum() for _ in range(800)]
            assert set(await flood(behind_proxy, wrong)) == {401}
            assert set(await flood(behind_proxy, [malformed(noise) for _ in range(800)])) == {401}
        await connection.close()
        assert set(await flood(behind_proxy, [api_keys.generate().text for _ in range(400)])) == {401}
    assert len(good) > 5
    assert {status for status, _ in good} == {200}
    assert platform.alive()


def new_key(platform: Gateway) -> str:
    """A good key that nobody was told of."""
    key = api_keys.generate()
    platform.sql(
        "INSERT INTO keys (id, account, scopes, digest, pepper_id, last_four)"
        " VALUES ($1, 'default', '{inference}', $2, '1', 'abcd')",
        key.id,
        api_keys.digest(key.secret, PEPPER.encode()),
    )
    return key.text


async def test_k4_all_made_up_keys_of_a_moment_are_one_query(platform: Gateway, behind_proxy: int) -> None:
    """Each right in form and checksum, and asked while no query ends; a new key among them opens at once."""
    new = await asyncio.to_thread(new_key, platform)
    made_up = [api_keys.generate().text for _ in range(60)]
    connection = await asyncpg.connect(platform.database_url)
    async with asyncio.TaskGroup() as tasks, connection.transaction():
        await connection.execute("LOCK TABLE keys IN ACCESS EXCLUSIVE MODE")
        flooding = tasks.create_task(flood(behind_proxy, made_up, connections=len(made_up)))

        async def waiting() -> int:
            return int(await connection.fetchval(WAITING))

        await until(waiting)
        opened = tasks.create_task(answers(behind_proxy, iter([new]), GUEST))
        assert set(await flood(behind_proxy, [wrong_checksum() for _ in range(200)])) == {401}  # it goes on
        assert await waiting() == 1
    await connection.close()
    assert set(flooding.result()) == {401}
    assert [status for status, _ in opened.result()] == [200]


def resident_megabytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


@pytest.mark.chaos
async def test_k4_a_hundred_thousand_made_up_keys(platform: Gateway, behind_proxy: int) -> None:
    """At full rate, a third of each kind; 429 is an answer too. Prints what the guests feel."""
    noise = random.Random(20261121)
    key = platform.keys["api_key"]
    async with good_traffic(behind_proxy, key) as quiet:
        await asyncio.sleep(10)
    texts = [(wrong_checksum, api_keys.generate, lambda: malformed(noise))[number % 3]() for number in range(100_000)]
    made = [text if isinstance(text, str) else text.text for text in texts]
    before = resident_megabytes(platform.authz.process.pid)
    began = time.monotonic()
    async with good_traffic(behind_proxy, key) as busy:
        statuses = await flood(behind_proxy, made, connections=16)
    seconds = time.monotonic() - began
    grown = resident_megabytes(platform.authz.process.pid) - before
    tails = [sorted(taken for _, taken in each)[len(each) * 99 // 100] for each in (quiet, busy)]
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    print(f"\nK4: {len(made) / seconds:.0f} made-up keys a second, answered {counts}; authz grew by {grown} MB")
    print(f"K4: a guest's p99 {tails[0] * 1000:.1f} -> {tails[1] * 1000:.1f} ms, ratio {tails[1] / tails[0]:.2f}")
    assert set(counts) <= {401, 429, 503}
    assert {status for status, _ in busy} == {200}
    assert grown < 64


async def test_k6_no_usable_secret_is_in_the_database_in_valkey_or_in_a_log(platform: Gateway, redis_url: str) -> None:
    body = b'{"account":"default","name":"k6"}'
    reply = platform.ask("POST", "/admin/v1/keys", body, port=platform.admin, key="admin_key")
    shown = [text for text in _texts(json.loads(reply.body)) if text.startswith("upl_")]
    assert len(shown) == 1
    used = [*shown, *(text for text in platform.keys.values() if text.startswith("upl_"))]
    assert platform.ask("GET", "/v1/models", key=shown[0]).status == 200
    assert platform.ask("GET", "/v1/models", key=shown[0][:-1]).status == 401
    platform.ask("GET", f"/v1/models/{shown[0]}", key=wrong_checksum())
    secrets = [PEPPER, *(api_keys.parse(text).secret for text in used)]
    places = {"logs": platform.logs(), "database": await _dump(platform.database_url), "valkey": _held(redis_url)}
    for place, text in places.items():
        assert text
        for secret in secrets:
            assert secret not in text, place
            assert secret.encode().hex() not in text, place


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(each)


async def _dump(url: str) -> str:
    """Every row of every table."""
    connection = await asyncpg.connect(url)
    tables = await connection.fetch("SELECT schemaname, tablename FROM pg_tables WHERE schemaname = 'public'")
    rows = [
        str(row[0])
        for schema, table in tables
        for row in await connection.fetch(f'SELECT to_jsonb(t)::text FROM "{schema}"."{table}" t')
    ]
    await connection.close()
    return "\n".join(rows)


def _held(url: str) -> str:
    """Every key and value."""
    with Redis.from_url(url) as redis:
        return "".join(f"{name!r} {redis.dump(name)!r}" for name in redis.scan_iter(count=1000))
