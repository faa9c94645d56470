"""Reservations whose events never come are found; those whose events may still come are left alone."""

import time

import pytest

from billing.metrics import BILLING_ORPHANS
from billing.orphans import Sweep
from billing.settlement import connect_settlement
from common import names


@pytest.fixture
async def settlement(redis_url):
    async with connect_settlement(redis_url) as connected:
        yield connected


async def overdue(books, *events):
    """They must have ended a minute ago."""
    await books.reserve(*events)
    ended = {event.reservation: time.time() * 1000 - 60_000 for event in events}
    await books.redis.zadd(names.reservations_key(books.account), ended)


async def test_what_nobody_tells_of_is_given_back_once_billing_has_passed_its_time(books, settlement):
    orphan, running, late = (books.event(number, key="k") for number in range(3))
    await books.reserve(running)
    await overdue(books, orphan, late)
    await books.bus.ensure_usage_consumer()
    sweep = Sweep(books.bus, settlement, grace_seconds=30)
    await books.publish(late)  # its event lies in the stream
    await sweep.step()
    for _ in range(2):
        await sweep.step()
    assert (await books.quota())["reserved"] == 3000  # billing has not passed the mark
    await books.bill()
    assert (await books.quota())["reserved"] == 2000
    before = BILLING_ORPHANS._value.get()
    await sweep.step()
    assert BILLING_ORPHANS._value.get() > before  # a sweep sees all of Valkey: other tests leave orphans, too
    left = await books.redis.zrange(names.reservations_key(books.account), 0, -1)
    assert left == [running.reservation.encode()]
    assert (await books.quota())["reserved:k"] == 1000


async def test_an_event_that_is_not_yet_counted_as_pending_is_waited_for(books, settlement, monkeypatch):
    """The server acknowledges a message to its publisher before it counts it there."""
    consumer_info = books.bus.js.consumer_info

    async def lagging(*args):
        info = await consumer_info(*args)
        info.num_pending = 0
        return info

    late = books.event(key="k")
    await overdue(books, late)
    await books.bus.ensure_usage_consumer()
    await books.publish(late)
    monkeypatch.setattr(books.bus.js, "consumer_info", lagging)
    sweep = Sweep(books.bus, settlement, grace_seconds=30)
    for _ in range(2):
        await sweep.step()
    assert (await books.quota())["reserved"] == 1000


async def test_within_its_grace_nothing_is_an_orphan(books, settlement):
    event = books.event()
    await overdue(books, event)
    await books.bus.ensure_usage_consumer()
    sweep = Sweep(books.bus, settlement, grace_seconds=300)
    for _ in range(2):
        await sweep.step()
    assert (await books.quota())["reserved"] == 1000


async def test_a_sweep_and_a_late_settlement_give_back_once(books, settlement):
    orphan, other = books.event(1, key="k"), books.event(2, key="k")
    await books.reserve(other)
    await overdue(books, orphan)
    await books.bus.ensure_usage_consumer()
    sweep = Sweep(books.bus, settlement, grace_seconds=30)
    for _ in range(2):
        await sweep.step()
    await books.publish(orphan)  # from a spool, an hour later
    await books.bill()
    quota = await books.quota()
    assert (quota["reserved"], quota["used"]) == (1000, orphan.usage.input_tokens + orphan.usage.output_tokens)
