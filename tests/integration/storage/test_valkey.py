"""The client of Valkey on a real server: pipelines, transactions, scripts and scans."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from storage.valkey import Script, Valkey, ValkeyError, connect_valkey


@pytest.fixture
async def valkey(redis_url: str) -> AsyncIterator[Valkey]:
    async with connect_valkey(redis_url, call_seconds=30.0) as connected:
        yield connected


@pytest.fixture
def name() -> str:
    return f"test:{uuid.uuid4().hex}"


async def test_a_pipeline_answers_each_command_in_order_also_those_that_failed(valkey: Valkey, name: str) -> None:
    replies = await valkey.pipeline([("SET", name, "text"), ("INCR", name), ("GET", name), ("GET", f"{name}:none")])
    assert isinstance(replies[1], ValkeyError)
    assert (replies[0], *replies[2:]) == (b"OK", b"text", None)
    assert await valkey.pipeline([]) == []


async def test_no_other_command_runs_inside_a_transaction(valkey: Valkey, name: str) -> None:
    async def count() -> list[int]:
        return await valkey.transaction([("INCR", name)] * 5)

    others = [valkey.call("INCRBY", name, 1000) for _ in range(50)]
    *found, _ = await asyncio.gather(*(count() for _ in range(20)), asyncio.gather(*others))
    for replies in found:
        assert [reply - replies[0] for reply in replies] == [0, 1, 2, 3, 4]


async def test_a_transaction_that_fails_says_why(valkey: Valkey, name: str) -> None:
    await valkey.call("SET", name, "text")
    with pytest.raises(ValkeyError, match="not an integer"):
        await valkey.transaction([("GET", name), ("INCR", name)])
    with pytest.raises(ValkeyError, match="EXECABORT"):
        await valkey.transaction([("GET",)])
    assert await valkey.call("GET", name) == b"text"


async def test_a_script_runs_once_for_each_call_on_a_server_that_does_not_have_it(valkey: Valkey, name: str) -> None:
    script = Script(valkey, "billing.reservations", "settle.lua")
    keys = [f"{{{name}}}:{part}" for part in ("reserved", "reservations", "amounts")]
    call: tuple[str | bytes | int, ...] = (3, *keys, b"\x90", b"\x90")  # two empty lists
    for _ in range(2):
        await valkey.call("SCRIPT", "FLUSH")
        assert await script.run(*call) == 0
        await valkey.call("SCRIPT", "FLUSH")
        assert await script.run_all([call] * 3) == [0, 0, 0]
    with pytest.raises(ValkeyError):
        await script.run_all([call, (3, *keys, b"\x90", b"\xc1")])


async def test_a_scan_finds_every_key_of_the_type(valkey: Valkey, name: str) -> None:
    await valkey.pipeline([("SET", f"{name}:{number}", 1) for number in range(3000)])
    await valkey.call("SADD", f"{name}:set", "member")
    assert len({key async for key in valkey.scan(f"{name}:*")}) == 3001
    assert [key async for key in valkey.scan(f"{name}:*", "set")] == [f"{name}:set".encode()]
