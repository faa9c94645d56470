"""Billing with real servers: a clean stream, a migrated ledger, and the means to fill one and read the other."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import msgspec
import pytest
from nats.js.errors import NotFoundError
from redis.asyncio import Redis
from uplion.billing.v1.usage_event_pb2 import AttemptStatus, UsageEvent

from billing.app import main
from billing.settings import BillingSettings
from common import names
from control.schema.migrate import migrate
from ledger import hash_chain
from messaging.bus import Bus, connect_bus
from tests.kit.services import running
from tests.kit.until import until
from tests.kit.usage_events import all_acknowledged

_WAIT_SECONDS = 60.0


@dataclass
class Harness:
    """What a test publishes, and what became of it."""

    settings: BillingSettings
    bus: Bus
    database: Any
    redis: Redis
    account: str

    def event(self, number: int = 0, **fields: Any) -> UsageEvent:
        """A complete event of this test's account; `fields` replace what it says."""
        event = UsageEvent(
            request_id=f"{self.account}-{number}",
            attempt=1,
            account=self.account,
            key=f"key{number % 3}",
            model="large",
            model_served="large",
            model_revision=3,
            provider="transformers",
            lane="default",
            tier="default",
            status=AttemptStatus.ATTEMPT_STATUS_COMPLETED,
            reservation=f"{self.account}-r{number}",
            last=True,
            operation="chat",
        )
        event.usage.input_tokens, event.usage.output_tokens = 100 + number % 7, 10 + number % 5
        event.duration.FromMilliseconds(250)
        event.end_time.GetCurrentTime()
        event.ticket_time.CopyFrom(event.end_time)
        for name, value in fields.items():
            if hasattr(value, "CopyFrom"):
                getattr(event, name).CopyFrom(value)
            else:
                setattr(event, name, value)
        return event

    async def publish(self, *events: UsageEvent | bytes) -> None:
        """Into the stream as they are, without its own protection against duplicates."""
        payloads = [event if isinstance(event, bytes) else event.SerializeToString() for event in events]
        for start in range(0, len(payloads), 1000):
            part = payloads[start : start + 1000]
            await asyncio.gather(*(self.bus.publish(names.usage_subject("large"), payload) for payload in part))

    async def reserve(self, *events: UsageEvent, tokens: int = 1000) -> None:
        """As authz does when it admits a request of a key with a budget, of an account with one."""
        async with self.redis.pipeline() as pipe:
            for event in events:
                amounts: list[str | int] = []
                for field in (names.counter_field("t", "a"), names.counter_field("t", f"k:{event.key}")):
                    pipe.hsetnx(names.used_key(event.account, "life"), field, -1)
                    pipe.hincrby(names.reserved_key(event.account), field, tokens)
                    amounts += (field, tokens)
                packed = msgspec.msgpack.encode([1_700_000_000, tokens, amounts, []])
                pipe.zadd(names.reservations_key(event.account), {event.reservation: 2e12})
                pipe.hset(names.reservation_amounts_key(event.account), event.reservation, packed)
            await pipe.execute()

    async def quota(self) -> dict[str, int]:
        """The lifetime counters of tokens in Valkey: `used` and `reserved`, and `used:<key>` and `reserved:<key>`."""
        async with Redis.from_url(self.settings.redis_url) as fresh:
            used = await fresh.hgetall(names.used_key(self.account, "life"))
            reserved = await fresh.hgetall(names.reserved_key(self.account))
        found = {}
        for field, value in used.items():
            assert isinstance(field, bytes)
            key = field.decode().split("|")[1][1:]
            found[f"used{key}"] = int(value)
            found[f"reserved{key}"] = int(reserved.get(field, 0))
        return found

    async def forget_counters(self) -> None:
        """Without it they differ from the next test's ledger, and a reconciliation reports only so many differences."""
        left = [key async for key in self.redis.scan_iter(match=f"*{self.account}*", count=1000)]
        if left:
            await self.redis.delete(*left)

    async def until_done(self) -> None:
        """Waits until every published event is acknowledged."""
        await until(lambda: all_acknowledged(self.bus))

    async def check(self, *events: UsageEvent) -> None:
        """Ledger, rollups, balances, spending and hash chain hold exactly these events, each once."""
        unique = {(event.request_id, event.attempt): event for event in events}
        tokens = sum(event.usage.input_tokens + event.usage.output_tokens for event in unique.values())
        requests = sum(event.last for event in unique.values())
        rows = await self.database.fetch("SELECT request_id, attempt FROM usage_events")
        assert sorted(tuple(row) for row in rows) == sorted(unique)
        sums = "coalesce(sum(requests), 0), coalesce(sum({}), 0)"
        hourly = await self.database.fetchrow(f"SELECT {sums.format('input_tokens + output_tokens')} FROM usage_hourly")
        assert tuple(hourly) == (requests, tokens)
        ledger = await self.database.fetchval("SELECT coalesce(sum(cost), 0) FROM usage_events")
        rolled = await self.database.fetchval("SELECT coalesce(sum(cost), 0) FROM usage_hourly")
        assert ledger == rolled
        # Every event names a key and a model, so each kind of balance has them all.
        kinds = "GROUP BY left(scope, 1), model = '', length(period) HAVING left(scope, 1) <> 'p'"
        for row in await self.database.fetch(f"SELECT {sums.format('tokens')} FROM balances {kinds}"):
            assert tuple(row) == (requests, tokens)
        for row in await self.database.fetch(f"SELECT sum(cost) FROM spending {kinds}"):
            assert row[0] == ledger
        await self.check_chain()

    async def check_chain(self, account: str = "%") -> None:
        """Every row is in its account's chain, and every digest is right; of one account, or of all."""
        names = ", ".join(hash_chain.COLUMNS)
        rows = await self.database.fetch(
            f"SELECT account, link, {names} FROM usage_events WHERE account LIKE $1"
            ' ORDER BY account, link, request_id COLLATE "C", attempt',
            account,
        )
        links: dict[tuple[str, int], list[str]] = {}
        for row in rows:
            links.setdefault((row[0], row[1]), []).append(hash_chain.row(*row[2:]))
        heads: dict[str, tuple[int, bytes]] = {}
        chained = "SELECT * FROM ledger_chain WHERE account LIKE $1 ORDER BY account, link"
        for link in await self.database.fetch(chained, account):
            number, previous = heads.get(link["account"], (0, hash_chain.FIRST_PREVIOUS))
            assert (link["link"], link["previous"]) == (number + 1, previous)
            texts = links.pop((link["account"], link["link"]))
            assert (link["rows"], link["digest"]) == (len(texts), hash_chain.digest(previous, texts))
            heads[link["account"]] = link["link"], link["digest"]
        assert not links
        heads_query = "SELECT account, link, digest FROM ledger_heads WHERE link > 0 AND account LIKE $1"
        stored = await self.database.fetch(heads_query, account)
        assert {row[0]: (row[1], row[2]) for row in stored} == heads

    @asynccontextmanager
    async def billing(self, **changes: Any) -> AsyncIterator[None]:
        """The real service in this event loop; leaving stops it and fails when it failed."""
        async with running(main, replace(self.settings, **changes)):
            yield

    async def bill(self, **changes: Any) -> None:
        """Runs billing until everything published so far is done."""
        async with self.billing(**changes):
            await self.until_done()


@asynccontextmanager
async def open_harness(settings: BillingSettings) -> AsyncIterator[Harness]:
    async with connect_bus(settings.nats_url, "test") as bus:
        await bus.ensure_streams()
        with suppress(NotFoundError):
            await bus.js.delete_consumer(names.STREAM_USAGE, names.CONSUMER_BILLING)
        await bus.js.purge_stream(names.STREAM_USAGE)
        await bus.js.purge_stream(names.STREAM_DEAD)
        pool = await asyncpg.create_pool(settings.postgres_url, min_size=0, max_size=2)
        redis = Redis.from_url(settings.redis_url)
        connection = await asyncpg.connect(settings.postgres_url)
        await migrate(connection)
        await connection.close()
        try:
            yield Harness(settings, bus, pool, redis, f"acc-{uuid.uuid4().hex[:12]}")
        finally:
            await redis.aclose()
            pool.terminate()


@pytest.fixture
def settings(postgres_database: str, redis_url: str, nats_url: str) -> BillingSettings:
    return BillingSettings(
        postgres_url=postgres_database,
        redis_url=redis_url,
        nats_url=nats_url,
        idle_seconds=0.05,
        batch_seconds=0.5,
        retention_months=1200,
        lag_batch_events=0,
    )


@pytest.fixture
async def harness(settings: BillingSettings) -> AsyncIterator[Harness]:
    async with open_harness(settings) as opened:
        yield opened
        await opened.forget_counters()


@pytest.fixture
def with_servers(settings: BillingSettings) -> Callable[..., Any]:
    """Harness on servers of the test's own."""
    return lambda **urls: open_harness(replace(settings, **urls))
