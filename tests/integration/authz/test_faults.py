"""What authz answers when what it stands on fails: never a free pass, and no error where none is needed."""

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import pytest
from redis.asyncio import Redis

from authz.settings import AuthzSettings
from common import names
from common.settings import dump
from control.schema.migrate import migrate
from storage.valkey import Valkey, ValkeyError
from tests.integration.authz.rules import at_once, requests, tokens
from tests.kit.services import ServiceProcess


@pytest.fixture
def own_valkey(start_server: Callable[[str], Any]) -> Any:
    return start_server("valkey")


@pytest.fixture
def own_postgres(start_server: Callable[[str], Any]) -> Any:
    return start_server("postgres")


async def test_valkey_killed_known_keys_have_a_share_strangers_503_and_it_recovers_alone(
    start: Any, settings: AuthzSettings, own_valkey: Any
) -> None:
    valkey = own_valkey
    async with start(settings, redis_url=valkey.url, outage_seconds=10.0) as authz:
        await authz.add_account()
        unlimited = await authz.add_key()
        authz.account += "-limited"
        await authz.add_account(requests(20))
        known, stranger = await authz.add_key(), await authz.add_key()
        await authz.until_status(unlimited.text, 200)  # 1.5 s where another authz is here
        assert (await authz.check(known.text)).status == 200
        await valkey.kill()
        statuses = [(await authz.check(known.text)).status for _ in range(8)]
        assert statuses == [200] * 4 + [503] * 4  # a quarter of the 19 that were left
        assert (await authz.check(stranger.text)).status == 503
        assert (await authz.check(unlimited.text)).status == 200
        await authz.until_status(unlimited.text, 503)  # the outage lasts too long
        await valkey.start()
        await authz.until_status(known.text, 200)
        await authz.until_status(stranger.text, 200)


async def test_a_flushed_valkey_is_told_what_is_outstanding_and_reads_the_rest_from_the_ledger(
    start: Any, settings: AuthzSettings, own_valkey: Any
) -> None:
    async with start(settings, redis_url=own_valkey.url) as authz:
        await authz.add_account()
        await authz.until_status((await authz.add_key()).text, 200)  # 1.5 s where another authz is here
        authz.account += "-flushed"
        await authz.add_account(tokens(100_000), requests(1000))
        key = await authz.add_key(at_once(500))
        running, ended = [await authz.check(key.text, facts={"max_tokens": 10}) for _ in range(2)]
        await authz.use("a", 600)
        await authz.end(ended, 70)
        async with Redis.from_url(own_valkey.url) as redis:
            await redis.flushall()
            await redis.script_flush()
        answer = await authz.check(key.text, facts={"max_tokens": 10})
        assert answer.status == 200  # known, so it has a local share
        assert answer.told["x-ratelimit-remaining-tokens"] == str((100_000 - 220) // 4 - 110)
        local = 0  # admitted by the share
        async with asyncio.timeout(60):
            while int(answer.told["x-ratelimit-remaining-tokens"]) < 50_000:
                await asyncio.sleep(0.1)  # each check takes of the local share, so not as often as until() asks
                last, answer, local = answer, await authz.check(key.text, facts={"max_tokens": 10}), local + 1
        assert local > 0
        assert int(answer.told["x-ratelimit-remaining-requests"]) == 1000 - (2 + local + 1), (
            "the first answer counts all"
        )
        assert last.status == 200
        assert answer.told["x-ratelimit-remaining-tokens"] == str(100_000 - 600 - 110 * (1 + local + 1))
        async with Redis.from_url(own_valkey.url) as redis:
            held = await redis.hgetall(names.reserved_key(authz.account))
            ids = await redis.zrange(names.reservations_key(authz.account), 0, -1)
        assert int(held[names.counter_field("n", f"k:{key.id}").encode()]) == len(ids) == 1 + local + 1
        assert running.headers["x-uplion-reservation"].encode() in ids


async def test_postgres_killed_known_keys_work_and_strangers_get_503(
    start: Any, settings: AuthzSettings, own_postgres: Any
) -> None:
    postgres = own_postgres
    connection = await asyncpg.connect(postgres.url)
    await migrate(connection)
    async with start(settings, postgres_url=postgres.url, key_ttl_seconds=0.2) as authz:
        authz.database = connection
        await authz.add_account()
        known, stranger = await authz.add_key(), await authz.add_key()
        await authz.until_status(known.text, 200)
        await connection.close()
        await postgres.kill()
        await asyncio.sleep(0.3)  # beyond key_ttl_seconds, so that known keys are looked up again
        for _ in range(5):
            assert (await authz.check(known.text)).status == 200
        assert (await authz.check(stranger.text)).status == 503
        await postgres.start()
        await authz.until_status(stranger.text, 200)


async def test_a_wrong_valkey_password_is_an_outage_and_no_free_pass(
    start: Any, settings: AuthzSettings, redis_url: str
) -> None:
    wrong = redis_url.replace("://:", "://:wrong")
    async with start(settings, redis_url=wrong) as authz:
        await authz.add_account()
        key = await authz.add_key()
        assert (await authz.check(key.text)).error is grpc.StatusCode.UNAVAILABLE


async def test_calls_of_one_turn_share_a_write_and_keep_their_order(redis_url: str) -> None:
    valkey = Valkey(redis_url, call_seconds=60.0)
    try:
        await asyncio.gather(*(valkey.call("RPUSH", "authz-order", number) for number in range(500)))
        found = await valkey.call("LRANGE", "authz-order", 0, -1)
        assert [int(each) for each in found] == list(range(500))
        await valkey.call("DEL", "authz-order")
        with pytest.raises(ValkeyError, match="wrong number of arguments"):
            await valkey.call("GET")
        assert await valkey.call("PING") == b"PONG"
    finally:
        await valkey.close()


async def test_the_process_serves_under_uvloop_and_drains_on_sigterm(
    settings: AuthzSettings, database: Any, authz: Any, tmp_path: Path
) -> None:
    """As it is deployed: `python -m authz`, configured by its environment, ended by a signal, exit code 0."""
    await authz.add_account()
    key = await authz.add_key()
    environment = {**dump(settings), "UPLION_AUTHZ_LISTEN": "127.0.0.1:0"}
    process = await asyncio.to_thread(ServiceProcess, "authz", environment=environment, folder=tmp_path)
    try:
        async with grpc.aio.insecure_channel(process.address) as channel:
            authz.channel = channel
            answers = await asyncio.gather(*(authz.check(key.text) for _ in range(50)))
        assert {answer.status for answer in answers} == {200}
    finally:
        code = await asyncio.to_thread(process.stop)
    assert code == 0


async def test_a_missing_secret_refuses_to_start_and_says_which() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UPLION_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "authz", env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"UPLION_AUTHZ_PEPPERS is missing" in errors
