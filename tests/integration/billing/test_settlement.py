"""Settling in a real Valkey: repeated, reordered, interrupted, and still right."""

import random

import msgspec
import pytest

from billing.entry import decode
from billing.rollups import ALL_MODELS, LIFE, Balance, Totals
from billing.settlement import connect_settlement
from common import names


def totals(tokens):
    """Lifetime totals from tokens by (account, scope)."""
    return Totals({Balance(*holder, ALL_MODELS, LIFE): count for holder, count in tokens.items()})


def entries(*events):
    return [decode(event.SerializeToString(), event.end_time.seconds) for event in events]


@pytest.fixture
async def settlement(redis_url):
    async with connect_settlement(redis_url) as connected:
        yield connected


async def test_settling_again_and_in_any_order_changes_nothing(books, settlement):
    """Totals as two billing processes read them, one after the other."""
    events = [books.event(number, key="k") for number in range(6)]
    await books.reserve(*events)
    steps = [
        (entries(*events[:number]), totals({(books.account, "a"): 10 * number, (books.account, "k:k"): 10 * number}))
        for number in range(1, 7)
    ]
    order = steps * 3
    random.Random(3).shuffle(order)
    settled = [await settlement.settle(*step) for step in order]
    assert sum(settled) == 6
    assert await books.quota() == {"used": 60, "used:k": 60, "reserved": 0, "reserved:k": 0}
    assert not await books.redis.exists(names.reservation_amounts_key(books.account))
    assert not await books.redis.exists(names.reservations_key(books.account))


async def test_an_event_that_is_not_the_last_keeps_the_reservation(books, settlement):
    event = books.event(last=False)
    await books.reserve(event)
    assert await settlement.settle(entries(event), totals({(books.account, "a"): 5})) == 0
    assert (await books.quota())["reserved"] == 1000


async def test_an_unknown_reservation_takes_nothing_from_others(books, settlement):
    mine, other = books.event(1, key="k"), books.event(2, key="k")
    await books.reserve(other)
    assert await settlement.settle(entries(mine), totals({(books.account, "a"): 1})) == 0
    assert (await books.quota())["reserved"] == 1000


async def test_a_fresh_valkey_learns_the_script_and_only_counters_that_a_rule_needs_are_raised(books, settlement):
    await books.redis.script_flush()
    await books.redis.hset(names.used_key(books.account, LIFE), names.tokens_field("a"), -1)
    await settlement.settle(entries(books.event()), totals({(books.account, "a"): 70, (books.account, "k:key0"): 30}))
    assert await books.quota() == {"used": 70, "reserved": 0}


async def test_every_period_scope_model_and_currency_has_its_counter(books, settlement):
    month, day = "2026-11", "2026-11-21"
    steps = Totals(
        {
            Balance(books.account, "a", "m", month): 5,
            Balance(books.account, "p:x", ALL_MODELS, day): 6,
        },
        {(Balance(books.account, "k:y", "m", month), "USD"): 7, (Balance(books.account, "k:y", "m", month), "EUR"): 8},
    )
    expected = {month: {"t|a|m": 5, "c|k:y|m|USD": 7, "c|k:y|m|EUR": 8}, day: {"t|p:x|": 6}}
    for period, fields in expected.items():
        await books.redis.hset(names.used_key(books.account, period), mapping=dict.fromkeys(fields, -1))
    await settlement.settle([], steps)
    for period, fields in expected.items():
        found = await books.redis.hgetall(names.used_key(books.account, period))
        assert {name.decode(): int(value) for name, value in found.items()} == fields


async def test_tokens_reserved_and_not_used_leave_their_minute(books, settlement):
    event = books.event()
    await books.reserve(event, tokens=500)
    rate = names.rate_key(books.account, "t", "a")
    packed = msgspec.msgpack.encode([1_700_000_000, 500, [], [rate]])
    await books.redis.hset(names.reservation_amounts_key(books.account), event.reservation, packed)
    await books.redis.hset(rate, mapping={"1700000000": 700, "n": 900})
    await settlement.settle(entries(event), totals({}))
    used = event.usage.input_tokens + event.usage.output_tokens
    assert await books.redis.hget(rate, "1700000000") == str(700 - (500 - used)).encode()
    assert await books.redis.hget(rate, "n") == str(900 - (500 - used)).encode()


async def test_large_batches_are_cut_into_short_calls(books, settlement):
    events = [books.event(number, key=f"k{number}") for number in range(1203)]
    await books.reserve(*events, tokens=3)
    tokens = {(books.account, f"k:{event.key}"): 7 for event in events} | {(books.account, "a"): 1 << 50}
    assert await settlement.settle(entries(*events), totals(tokens)) == 1203
    quota = await books.quota()
    assert (quota["used"], quota["used:k1202"], quota["reserved"], quota["reserved:k77"]) == (1 << 50, 7, 0, 0)


async def test_a_reservation_larger_than_what_is_left_never_goes_below_zero(books, settlement):
    event = books.event()
    await books.reserve(event)
    await books.redis.hset(names.reserved_key(books.account), names.tokens_field("a"), 10)
    await settlement.settle(entries(event), totals({(books.account, "a"): 1}))
    assert (await books.quota())["reserved"] == 0
