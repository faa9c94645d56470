"""Slots of requests at once: who comes while one is being freed waits for it, and nobody else does."""

import asyncio
import time

import pytest

from common.errors import Reason, UplionError
from ledger.limits import Limit
from tests.integration.authz.harness import harness

_WAIT_SECONDS = 60.0  # so long that a test that needs it would fail by its own time limit
_ONE = Limit("concurrency", "", 1)


async def test_a_slot_that_is_freed_meanwhile_is_taken(redis_url: str) -> None:
    async with harness(redis_url, release=_WAIT_SECONDS) as world, asyncio.timeout(50):
        record = world.record(_ONE)
        first = await world.admit(record)
        second = asyncio.create_task(world.admit(record))
        await asyncio.sleep(0)
        assert not second.done()
        freed = asyncio.Event()
        world.counter_writes.free_slot(world.account, first.reservation, freed.set)
        await freed.wait()
        assert (await second).holds_slot


async def test_of_many_that_wait_one_gets_it(redis_url: str) -> None:
    async with harness(redis_url, release=0.5) as world:
        record = world.record(_ONE)
        first = await world.admit(record)
        others = [asyncio.create_task(world.admit(record)) for _ in range(100)]  # more than may wait
        world.counter_writes.free_slot(world.account, first.reservation)
        found = await asyncio.gather(*others, return_exceptions=True)
        refusals = [each for each in found if isinstance(each, UplionError)]
        assert len(found) - len(refusals) == 1
        assert {each.reason for each in refusals} == {Reason.RATE_LIMIT_EXCEEDED}


async def test_a_refusal_for_another_reason_waits_for_nothing(redis_url: str) -> None:
    async with harness(redis_url, release=_WAIT_SECONDS) as world:
        record = world.record(_ONE, Limit("requests", "minute", 1))
        await world.admit(record)
        began = time.monotonic()
        with pytest.raises(UplionError):
            await world.admit(record)
        assert time.monotonic() - began < _WAIT_SECONDS / 2


@pytest.mark.parametrize(
    ("limit", "scarce"),
    [
        (Limit("concurrency", "", 40), [False] * 20 + [True] * 20),
        (Limit("concurrency", "", 3), [True] * 3),
        (Limit("requests", "minute", 3), [False] * 3),
    ],
)
async def test_slots_are_scarce_while_less_than_half_or_few_are_left(
    redis_url: str, limit: Limit, scarce: list[bool]
) -> None:
    async with harness(redis_url) as world:
        record = world.record(limit)
        assert [(await world.admit(record)).slots_scarce for _ in scarce] == scarce
