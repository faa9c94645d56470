"""Reservations whose events never come are found; those whose events may still come are left alone."""

import time

import pytest

from billing.metrics import BILLING_ORPHANS
from billing.reservations.orphans import OrphanSweep
from billing.reservations.settlement import connect_settlement
from common import names


@pytest.fixture
async def settlement(redis_url):
    async with connect_settlement(redis_url) as connected:
        yield connected


async def overdue(harness, *events):
    """They must have ended a minute ago."""
    await harness.reserve(*events)
    ended = {event.reservation: time.time() * 1000 - 60_000 for event in events}
    await harness.redis.zadd(names.reservations_key(harness.account), ended)


async def test_what_nobody_tells_of_is_given_back_once_billing_has_passed_its_time(harness, settlement):
    orphan, running, late = (harness.event(number, key="k") for number in range(3))
    await harness.reserve(running)
    await overdue(harness, orphan, late)
    await harness.bus.ensure_usage_consumer()
    sweep = OrphanSweep(harness.bus, settlement, grace_seconds=30)
    await harness.publish(late)  # its event lies in the stream
    await sweep.step()
    for _ in range(2):
        await sweep.step()
    assert (await harness.quota())["reserved"] == 3000  # billing has not passed the mark
    await harness.bill()
    assert (await harness.quota())["reserved"] == 2000
    before = BILLING_ORPHANS._value.get()
    await sweep.step()
    assert BILLING_ORPHANS._value.get() > before  # a sweep sees all of Valkey: other tests leave orphans, too
    left = await harness.redis.zrange(names.reservations_key(harness.account), 0, -1)
    assert left == [running.reservation.encode()]
    assert (await harness.quota())["reserved:k"] == 1000


async def test_an_event_that_is_not_yet_counted_as_pending_is_waited_for(harness, settlement, monkeypatch):
    """The server acknowledges a message to its publisher before it counts it there."""
    consumer_info = harness.bus.js.consumer_info

    async def lagging(*args):
        info = await consumer_info(*args)
        info.num_pending = 0
        return info

    late = harness.event(key="k")
    await overdue(harness, late)
    await harness.bus.ensure_usage_consumer()
    await harness.publish(late)
    monkeypatch.setattr(harness.bus.js, "consumer_info", lagging)
    sweep = OrphanSweep(harness.bus, settlement, grace_seconds=30)
    for _ in range(2):
        await sweep.step()
    assert (await harness.quota())["reserved"] == 1000


async def test_within_its_grace_nothing_is_an_orphan(harness, settlement):
    event = harness.event()
    await overdue(harness, event)
    await harness.bus.ensure_usage_consumer()
    sweep = OrphanSweep(harness.bus, settlement, grace_seconds=300)
    for _ in range(2):
        await sweep.step()
    assert (await harness.quota())["reserved"] == 1000


async def test_a_sweep_and_a_late_settlement_give_back_once(harness, settlement):
    orphan, other = harness.event(1, key="k"), harness.event(2, key="k")
    await harness.reserve(other)
    await overdue(harness, orphan)
    await harness.bus.ensure_usage_consumer()
    sweep = OrphanSweep(harness.bus, settlement, grace_seconds=30)
    for _ in range(2):
        await sweep.step()
    await harness.publish(orphan)  # from a spool, an hour later
    await harness.bill()
    quota = await harness.quota()
    assert (quota["reserved"], quota["used"]) == (1000, orphan.usage.input_tokens + orphan.usage.output_tokens)
