"""Settling in a real Valkey: repeated, reordered, interrupted, and still right."""

import random

import msgspec
import pytest

from billing.entry import Arrival, decode
from billing.reservations.settlement import connect_settlement
from billing.rollups import ALL_MODELS, Balance, Totals
from common import names
from ledger.periods import LIFE


def totals(tokens):
    """Lifetime totals from tokens by (account, scope)."""
    return Totals({Balance(account, scope, ALL_MODELS, LIFE): count for (account, scope), count in tokens.items()})


def entries(*events):
    return [decode(event.SerializeToString(), Arrival(event.end_time.ToNanoseconds(), None)) for event in events]


@pytest.fixture
async def settlement(redis_url):
    async with connect_settlement(redis_url) as connected:
        yield connected


async def test_settling_again_and_in_any_order_changes_nothing(harness, settlement):
    """Totals as two billing processes read them, one after the other."""
    events = [harness.event(number, key="k") for number in range(6)]
    await harness.reserve(*events)
    steps = [
        (
            entries(*events[:number]),
            totals({(harness.account, "a"): 10 * number, (harness.account, "k:k"): 10 * number}),
        )
        for number in range(1, 7)
    ]
    order = steps * 3
    random.Random(3).shuffle(order)
    settled = [await settlement.settle(*step) for step in order]
    assert sum(settled) == 6
    assert await harness.quota() == {"used": 60, "used:k": 60, "reserved": 0, "reserved:k": 0}
    assert not await harness.redis.exists(names.reservation_amounts_key(harness.account))
    assert not await harness.redis.exists(names.reservations_key(harness.account))


async def test_an_event_that_is_not_the_last_keeps_the_reservation(harness, settlement):
    event = harness.event(last=False)
    await harness.reserve(event)
    assert await settlement.settle(entries(event), totals({(harness.account, "a"): 5})) == 0
    assert (await harness.quota())["reserved"] == 1000


async def test_an_unknown_reservation_takes_nothing_from_others(harness, settlement):
    mine, other = harness.event(1, key="k"), harness.event(2, key="k")
    await harness.reserve(other)
    assert await settlement.settle(entries(mine), totals({(harness.account, "a"): 1})) == 0
    assert (await harness.quota())["reserved"] == 1000


async def test_a_fresh_valkey_learns_the_script_and_only_counters_that_a_rule_needs_are_raised(harness, settlement):
    await harness.redis.script_flush()
    await harness.redis.hset(names.used_key(harness.account, LIFE), names.counter_field("t", "a"), -1)
    await settlement.settle(
        entries(harness.event()), totals({(harness.account, "a"): 70, (harness.account, "k:key0"): 30})
    )
    assert await harness.quota() == {"used": 70, "reserved": 0}


async def test_every_period_scope_model_and_currency_has_its_counter(harness, settlement):
    month, day = "2026-11", "2026-11-21"
    steps = Totals(
        {
            Balance(harness.account, "a", "m", month): 5,
            Balance(harness.account, "p:x", ALL_MODELS, day): 6,
        },
        {
            (Balance(harness.account, "k:y", "m", month), "USD"): 7,
            (Balance(harness.account, "k:y", "m", month), "EUR"): 8,
        },
    )
    expected = {month: {"t|a|m": 5, "c|k:y|m|USD": 7, "c|k:y|m|EUR": 8}, day: {"t|p:x|": 6}}
    for period, fields in expected.items():
        await harness.redis.hset(names.used_key(harness.account, period), mapping=dict.fromkeys(fields, -1))
    await settlement.settle([], steps)
    for period, fields in expected.items():
        found = await harness.redis.hgetall(names.used_key(harness.account, period))
        assert {name.decode(): int(value) for name, value in found.items()} == fields


async def test_tokens_reserved_and_not_used_leave_their_minute(harness, settlement):
    event = harness.event()
    await harness.reserve(event, tokens=500)
    rate = names.rate_key(harness.account, "t", "a")
    packed = msgspec.msgpack.encode([1_700_000_000, 500, [], [rate]])
    await harness.redis.hset(names.reservation_amounts_key(harness.account), event.reservation, packed)
    await harness.redis.hset(rate, mapping={"1700000000": 700, "n": 900})
    await settlement.settle(entries(event), totals({}))
    used = event.usage.input_tokens + event.usage.output_tokens
    assert await harness.redis.hget(rate, "1700000000") == str(700 - (500 - used)).encode()
    assert await harness.redis.hget(rate, "n") == str(900 - (500 - used)).encode()


async def test_large_batches_are_cut_into_short_calls(harness, settlement):
    events = [harness.event(number, key=f"k{number}") for number in range(1203)]
    await harness.reserve(*events, tokens=3)
    tokens = {(harness.account, f"k:{event.key}"): 7 for event in events} | {(harness.account, "a"): 1 << 50}
    assert await settlement.settle(entries(*events), totals(tokens)) == 1203
    quota = await harness.quota()
    assert (quota["used"], quota["used:k1202"], quota["reserved"], quota["reserved:k77"]) == (1 << 50, 7, 0, 0)


async def test_a_reservation_larger_than_what_is_left_never_goes_below_zero(harness, settlement):
    event = harness.event()
    await harness.reserve(event)
    await harness.redis.hset(names.reserved_key(harness.account), names.counter_field("t", "a"), 10)
    await settlement.settle(entries(event), totals({(harness.account, "a"): 1}))
    assert (await harness.quota())["reserved"] == 0
