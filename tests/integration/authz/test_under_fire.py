"""Three authz under load while Valkey dies, or loses all it held: a budget is not overspent. `make test-chaos`."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from redis.asyncio import Redis
from uplion.billing.v1.usage_event_pb2 import AttemptStatus, UsageEvent

from authz.settings import AuthzSettings
from billing.app import main as billing
from billing.settings import BillingSettings
from common import names
from common.settings import dump
from messaging.bus import connect_bus
from tests.integration.authz.rules import requests, tokens
from tests.kit.services import ServiceProcess
from tests.kit.until import until

pytestmark = pytest.mark.chaos

_PROCESSES = 3
_CLIENTS = 24
_TOKENS = 110  # of each request: 100 in, 10 out
_BUDGET = 1_000 * _TOKENS
_LONGEST_SECONDS = 90.0


class Crowd:
    """Clients that ask whichever authz, run for a moment, and end with a usage event."""

    def __init__(self, doors: list[Any], key: Any, bus: Any, account: str, chance: random.Random) -> None:
        self.doors, self.key, self.bus, self.account = doors, key, bus, account
        self.admitted = 0
        self.admitted_at: list[float] = []
        self.statuses: dict[int, int] = {}
        self.refused_in_a_row = 0
        self.stop = asyncio.Event()
        self.chance = chance

    def has_spent(self, tokens_spent: float) -> bool:
        return self.admitted * _TOKENS >= tokens_spent

    async def client(self) -> None:
        while not self.stop.is_set():
            answer = await self.chance.choice(self.doors).check(self.key.text, size=300, facts={"max_tokens": 10})
            self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
            if answer.status == 200:
                self.refused_in_a_row = 0
                self.admitted += 1
                self.admitted_at.append(time.monotonic())
                await asyncio.sleep(self.chance.uniform(0, 1.5))
                await self.end(answer)
            else:
                self.refused_in_a_row += answer.status == 429
                await asyncio.sleep(0.05)

    async def end(self, answer: Any) -> None:
        event = UsageEvent(
            request_id=answer.request_id,
            attempt=1,
            account=self.account,
            key=self.key.id,
            model="m",
            model_served="m",
            status=AttemptStatus.ATTEMPT_STATUS_COMPLETED,
            reservation=answer.headers["x-uplion-reservation"],
            last=True,
            operation="chat",
        )
        event.usage.input_tokens, event.usage.output_tokens = 100, 10
        event.end_time.GetCurrentTime()
        event.ticket_time.CopyFrom(event.end_time)
        await self.bus.publish(names.usage_subject("m"), event.SerializeToString())


async def _lose_everything(valkey: Any) -> None:
    async with Redis.from_url(valkey.url) as redis:
        await redis.flushall()


async def _die(valkey: Any) -> None:
    await valkey.kill()
    await asyncio.sleep(1.0)
    await valkey.start()


@pytest.fixture
def valkey(start_server: Any) -> Any:
    return start_server("valkey")


@pytest.mark.parametrize("blow", [_lose_everything, _die])
async def test_a_budget_is_overspent_by_one_percent_at_most(
    blow: Callable[[Any], Any], start: Any, settings: AuthzSettings, valkey: Any, tmp_path: Path, seed: int
) -> None:
    settings = replace(settings, redis_url=valkey.url, limits_seconds=1.0, local_share=1 / 4)
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect_bus(settings.nats_url, "test"))
        await bus.ensure_streams()
        books = BillingSettings(
            postgres_url=settings.postgres_url, redis_url=valkey.url, nats_url=settings.nats_url, idle_seconds=0.05
        )
        settling = asyncio.create_task(billing(books, stop, lambda address: None))
        first = await stack.enter_async_context(start(settings))  # for its database, and as the first of three
        doors = [first]
        for number in range(1, _PROCESSES):
            folder = tmp_path / str(number)
            folder.mkdir()
            channel = grpc.aio.insecure_channel(await _start(stack, settings, folder))
            doors.append(replace(first, channel=await stack.enter_async_context(channel)))
        await first.add_account(tokens(_BUDGET), requests(100_000))
        crowd = Crowd(doors, await first.add_key(), bus, first.account, random.Random(seed))
        async with asyncio.TaskGroup() as clients:
            for _ in range(_CLIENTS):
                clients.create_task(crowd.client())
            async with asyncio.timeout(_LONGEST_SECONDS):
                for tokens_spent in (0.3 * _BUDGET, 0.6 * _BUDGET):
                    await until(partial(crowd.has_spent, tokens_spent), _LONGEST_SECONDS)
                    await blow(valkey)
                await until(lambda: crowd.refused_in_a_row >= 200, _LONGEST_SECONDS)
            crowd.stop.set()
        print(f"admitted {crowd.admitted * _TOKENS} of {_BUDGET} tokens; answers {crowd.statuses}")
        assert crowd.admitted * _TOKENS <= 1.01 * _BUDGET
        assert crowd.admitted * _TOKENS >= 0.99 * _BUDGET  # and nothing stays behind that nobody uses
        async with asyncio.timeout(60), Redis.from_url(valkey.url) as redis:

            async def settled() -> bool:
                return not await redis.zcard(names.reservations_key(first.account))

            await until(settled)
            used = await redis.hget(names.used_key(first.account, "life"), names.counter_field("t", "a"))
        assert int(used or 0) == crowd.admitted * _TOKENS
        stop.set()
        async with asyncio.timeout(60):
            await settling


async def _start(stack: AsyncExitStack, settings: AuthzSettings, folder: Path) -> str:
    """Another authz, in a process of its own; its address."""
    process = await asyncio.to_thread(ServiceProcess, "authz", environment=dump(settings), folder=folder)
    stack.callback(process.stop)
    return process.address
