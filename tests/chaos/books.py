"""Does everything that counts say the same? The ledger against the clients, and against every sum made of it."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import asyncpg
import nats.errors
from redis.asyncio import Redis

from common import names
from ledger import limits
from messaging.bus import connect_bus
from tests.chaos.crowd import Told
from tests.kit.platform import Platform
from tests.kit.until import until
from tests.kit.usage_events import spooled

_QUIET_SECONDS = 180.0


async def until_quiet(platform: Platform) -> None:
    """Waits until no event is on its way: none spooled, none in the stream unacknowledged, no ticket unsettled."""
    async with connect_bus(platform.facts["nats_url"], "chaos", connect_seconds=60) as bus:
        rest: dict[str, Any] = {}
        busy_at = time.monotonic()

        async def quiet() -> bool:
            nonlocal rest, busy_at
            try:
                rest = await _on_the_way(platform, bus)
            except (nats.errors.Error, TimeoutError, OSError) as problem:
                rest = {"problem": repr(problem)}
            if rest:
                busy_at = time.monotonic()
            # The router publishes the event of a vanished worker's attempt once the worker's entry has expired: 10 s.
            return time.monotonic() - busy_at > 15.0

        try:
            await until(quiet, _QUIET_SECONDS)
        except AssertionError as late:
            late.add_note(f"still on the way: {rest}")
            raise


async def _on_the_way(platform: Platform, bus: Any) -> dict[str, Any]:
    rest: dict[str, Any] = {}
    if waiting := spooled(platform.state / "spool"):
        rest["spool"] = waiting
    for stream in (names.STREAM_USAGE, names.STREAM_TASKS):
        for consumer in await bus.js.consumers_info(stream):
            if unsettled := (consumer.num_pending or 0) + (consumer.num_ack_pending or 0):
                rest[consumer.name] = unsettled
    return rest


async def differences(platform: Platform, told: Iterable[Told], account: str, key: str) -> list[str]:
    """Everything that does not add up, in words, of what one key did."""
    connection = await asyncpg.connect(platform.facts["postgres_url"], timeout=30)
    redis = Redis.from_url(platform.facts["redis_url"])
    try:
        rows = await connection.fetch(
            "SELECT request_id, attempt, status, last, input_tokens, output_tokens, coalesce(cost, 0) AS cost"
            " FROM usage_events WHERE key = $1",
            key,
        )
        found = _against_clients(rows, told)
        found += await _against_sums(connection, redis, account, key)
        return found
    finally:
        await connection.close()
        await redis.aclose()


def _against_clients(rows: list[Any], told: Iterable[Told]) -> list[str]:
    found = []
    attempts: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        attempts[row["request_id"]].append(row)
    for request_id, its in attempts.items():
        numbers = [row["attempt"] for row in its]
        if len(numbers) != len(set(numbers)):
            found.append(f"double: {request_id} has attempts {sorted(numbers)}")
    silent = Counter(
        f"{one.fate} {one.status} {one.error[:60]}"
        for one in told
        if not any(r["last"] for r in attempts.get(one.request_id, []))
    )
    print(f"requests without a last event: {dict(silent)}")
    for one in told:
        its = attempts.get(one.request_id, [])
        if one.status >= 500 and one.status != 504:
            billed = [row for row in its if row["input_tokens"] + row["output_tokens"] or row["cost"]]
            found += [f"billed {one.status}: {one.request_id} is in the ledger as {dict(row)}" for row in billed]
        if one.fate != "ok":
            continue
        if not its:
            found.append(f"lost: {one.request_id} was answered and is not in the ledger")
            continue
        counted = (sum(row["input_tokens"] for row in its), sum(row["output_tokens"] for row in its))
        if counted != (one.input_tokens, one.output_tokens):
            shown = [(row["attempt"], row["status"], row["input_tokens"], row["output_tokens"]) for row in its]
            found.append(f"differs: {one.request_id} was told {one.input_tokens}+{one.output_tokens}, ledger {shown}")
    return found


async def _against_sums(connection: Any, redis: Any, account: str, key: str) -> list[str]:
    """`used` in Valkey is there because a limit of the key counts it."""
    tokens = "coalesce(sum(input_tokens + output_tokens), 0)::bigint"
    ledger = await connection.fetchval(f"SELECT {tokens} FROM usage_events WHERE key = $1", key)
    requests = await connection.fetchval("SELECT count(*) FROM usage_events WHERE key = $1 AND last", key)
    hourly = await connection.fetchrow(
        f"SELECT {tokens} AS tokens, coalesce(sum(requests), 0)::bigint AS requests FROM usage_hourly WHERE key = $1",
        key,
    )
    scope = limits.scope("key", key)
    balance = await connection.fetchrow(
        "SELECT tokens, requests FROM balances WHERE account = $1 AND scope = $2 AND model = '' AND period = 'life'",
        account,
        scope,
    )
    used = await redis.hget(names.used_key(account, "life"), names.counter_field("t", scope))
    found = []
    sums = {"usage_hourly": hourly["tokens"], "balances": balance["tokens"], "Valkey": int(used or -1)}
    found += [f"sum: {name} has {value} tokens, the ledger {ledger}" for name, value in sums.items() if value != ledger]
    counts = {"usage_hourly": hourly["requests"], "balances": balance["requests"]}
    found += [f"sum: {name} has {n} requests, the ledger {requests}" for name, n in counts.items() if n != requests]
    return found


async def until_released(platform: Platform, account: str) -> int:
    """Waits until every reservation is given back; how many never told their end, and were found by billing.

    A router killed between the admission and the ticket leaves one that no event ever names, an authz that tells Valkey
    late of what it admitted without it one that was settled before.
    """
    redis = Redis.from_url(platform.facts["redis_url"])
    try:
        orphans = await redis.zcard(names.reservations_key(account))

        async def none_held() -> bool:
            return not await redis.zcard(names.reservations_key(account))

        await until(none_held, _QUIET_SECONDS)
        reserved = await redis.hgetall(names.reserved_key(account))
        assert all(int(amount) == 0 for field, amount in reserved.items() if field != b"since"), reserved
        print(f"{orphans} reservations never told their end, and were given back")
        return int(orphans)
    finally:
        await redis.aclose()
