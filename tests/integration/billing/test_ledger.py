"""Events from the stream to the ledger, the rollups, the balances and Valkey, each counted once."""

import asyncio
import random
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NothingCame
from uplion.billing.v1.usage_event_pb2 import AttemptStatus

from billing.metrics import BILLING_RETRIES
from billing.store import LedgerWriter
from common import names
from tests.kit.until import until

PRICE = (
    "INSERT INTO prices (model, effective_from, currency, input_per_million_tokens, cached_per_million_tokens,"
    " output_per_million_tokens, per_request) VALUES ($1, $2, 'EUR', $3, $4, $5, $6) RETURNING version"
)


async def set_price(harness, model="large", prompt=2, cached=None, output=8, request=0, since="2025-01-01"):
    moment = datetime.fromisoformat(since).replace(tzinfo=UTC)
    numbers = [None if value is None else Decimal(str(value)) for value in (prompt, cached, output, request)]
    return await harness.database.fetchval(PRICE, model, moment, *numbers)


def at(text):
    stamp = Timestamp()
    stamp.FromJsonString(text)
    return stamp


async def dead(harness, count):
    """The dead letters: (payload, reason)."""
    subscription = await harness.bus.js.pull_subscribe(names.dead_subject(names.STREAM_USAGE), stream=names.STREAM_DEAD)
    found: list[Any] = []
    try:
        while len(found) < count:
            found += await subscription.fetch(count - len(found), timeout=60)
        with pytest.raises(NothingCame):
            await subscription.fetch(1, timeout=0.1)
    finally:
        await subscription.unsubscribe()
    return [(message.data, message.headers[names.HEADER_DEAD_REASON]) for message in found]


async def test_an_event_is_recorded_priced_rolled_up_and_settled(harness):
    version = await set_price(harness, cached=0.5, request=0.001)
    event = harness.event(1, finish_reason=1)
    event.usage.cached_tokens, event.usage.reasoning_tokens = 40, 3
    event.queue_duration.FromMilliseconds(5)
    await harness.reserve(event, harness.event(2))
    await harness.publish(event)
    await harness.bill()
    row = await harness.database.fetchrow("SELECT * FROM usage_events")
    assert row["cost"] == Decimal("0.001") + (61 * Decimal(2) + 40 * Decimal("0.5") + 11 * Decimal(8)) / 1_000_000
    assert (row["price_version"], row["currency"], row["status"], row["finish_reason"]) == (
        version,
        "EUR",
        "completed",
        "stop",
    )
    assert (row["cached_tokens"], row["reasoning_tokens"], row["queue_seconds"]) == (40, 3, 0.005)
    assert row["first_token_seconds"] is None
    assert row["end_time"] == event.end_time.ToDatetime(tzinfo=UTC)
    assert await harness.quota() == {
        "used": 112,
        "used:key1": 112,
        "reserved": 1000,
        "reserved:key1": 0,
        "used:key2": -1,  # not read from the ledger yet
        "reserved:key2": 1000,
    }
    assert await harness.redis.zrange(names.reservations_key(harness.account), 0, -1) == [
        f"{harness.account}-r2".encode()
    ]
    await harness.check(event)


async def test_a_duplicate_is_counted_once_however_it_comes(harness):
    events = [harness.event(number) for number in range(20)]
    await harness.publish(*events, *events[:5], events[0])  # in one batch
    await harness.bill()
    await harness.publish(*events[3:])  # in another one
    await harness.bill()
    await harness.bus.js.delete_consumer(names.STREAM_USAGE, names.CONSUMER_BILLING)
    await harness.bill()  # all over again
    await harness.check(*events)


async def test_the_negative_control_without_the_unique_key_counts_twice(harness):
    """Proves that the test above can fail."""
    await harness.database.execute("ALTER TABLE usage_events DROP CONSTRAINT usage_events_pkey")
    event = harness.event()
    await harness.publish(event)
    await harness.bill()
    await harness.publish(event)
    await harness.bill()
    with pytest.raises(AssertionError):
        await harness.check(event)


async def test_the_routers_and_the_workers_event_of_one_attempt_meet_across_a_months_end(harness):
    ticket = at("2026-10-31T23:59:58Z")
    worker = harness.event(ticket_time=ticket, end_time=at("2026-11-01T00:00:03Z"))
    router = harness.event(
        ticket_time=ticket, end_time=at("2026-10-31T23:59:59Z"), status=AttemptStatus.ATTEMPT_STATUS_WORKER_LOST
    )
    await harness.publish(worker)
    await harness.bill()
    await harness.publish(router)
    await harness.bill()
    await harness.check(worker)
    assert await harness.database.fetchval("SELECT count(*) FROM usage_events_2026_10") == 1


async def test_attempts_of_one_request_are_separate(harness):
    events = [harness.event(attempt=number, last=number == 3) for number in (1, 2, 3)]
    await harness.reserve(events[0])
    await harness.publish(*events[:2])
    await harness.bill()
    assert (await harness.quota())["reserved"] == 1000
    await harness.publish(events[2])
    await harness.bill()
    assert (await harness.quota())["reserved"] == 0
    await harness.check(*events)


async def test_an_unknown_price_is_flagged_and_never_invented_later(harness):
    first = harness.event(1)
    await harness.publish(first)
    await harness.bill()
    await set_price(harness)
    second, before = harness.event(2), harness.event(3, end_time=at("2024-12-31T23:00:00Z"))
    await harness.publish(first, second, before)
    await harness.bill()
    rows = {row["request_id"]: row for row in await harness.database.fetch("SELECT * FROM usage_events")}
    for unpriced in (first, before):
        row = rows[unpriced.request_id]
        assert (row["cost"], row["price_version"], row["currency"]) == (None, None, None)
    assert rows[second.request_id]["cost"] == (102 * 2 + 12 * 8) / Decimal(1_000_000)
    hours = await harness.database.fetch(
        "SELECT currency, requests, cost > 0 FROM usage_hourly ORDER BY currency, hour"
    )
    assert [tuple(hour) for hour in hours] == [("", 1, False), ("", 1, False), ("EUR", 1, True)]
    await harness.check(first, second, before)


async def test_a_new_price_holds_from_its_moment_on_and_keeps_history(harness):
    old = await set_price(harness, output=8)
    new = await set_price(harness, output=80, since="2026-11-01")
    early, late = (
        harness.event(1, end_time=at("2026-10-31T23:59:59Z")),
        harness.event(2, end_time=at("2026-11-01T00:00:00Z")),
    )
    await harness.publish(early, late)
    await harness.bill()
    rows = await harness.database.fetch("SELECT price_version FROM usage_events ORDER BY request_id")
    assert [row[0] for row in rows] == [old, new]


async def test_malformed_events_end_in_dead_with_the_reason_and_stop_nobody(harness):
    long_model = harness.event(1, model="m\0" * 1000, model_served="", status=AttemptStatus.ATTEMPT_STATUS_REFUSED)
    good = [harness.event(0), long_model, harness.event(2)]
    bad = {
        b"\xff\xffnothing": "not a UsageEvent",
        harness.event(3, request_id="").SerializeToString(): "request_id is unset",
        harness.event(4, attempt=0).SerializeToString(): "attempt is not from 1 to 2147483647",
        harness.event(5, status=0).SerializeToString(): "status is unset or unknown",
        harness.event(6, key="").SerializeToString(): "account or key is unset",
        harness.event(
            7, lane="a\0b"
        ).SerializeToString(): "an id holds a backslash, or a character that cannot be printed",
        harness.event(8, request_id="r" * 300).SerializeToString(): "an id is longer than 200 characters",
        harness.event(9, model_revision=1 << 63).SerializeToString(): "model_revision is too large",
        harness.event(10, end_time=at("2100-01-01T00:00:00Z")).SerializeToString(): "end_time is unset, or no time at"
        " which this event can have happened",
    }
    await harness.publish(good[0], *bad, *good[1:])
    await harness.bill()
    assert dict(await dead(harness, len(bad))) == bad
    await harness.check(*good)
    assert await harness.database.fetchval("SELECT max(length(model)) FROM usage_events") == 256


async def test_a_row_the_ledger_cannot_hold_is_found_and_the_others_go_on(harness, monkeypatch):
    real = LedgerWriter.record

    async def record(self, entries):
        if any(entry.request_id.endswith("-13") for entry in entries):
            raise asyncpg.NumericValueOutOfRangeError("out of range")
        return await real(self, entries)

    monkeypatch.setattr(LedgerWriter, "record", record)
    events = [harness.event(number) for number in range(40)]
    await harness.publish(*events)
    await harness.bill()
    assert [reason for _, reason in await dead(harness, 1)] == [
        "the ledger cannot hold it: NumericValueOutOfRangeError"
    ]
    await harness.check(*events[:13], *events[14:])


async def test_rows_that_postgres_itself_refuses_are_dead_and_the_others_are_billed(harness):
    """By a constraint, and by an overflow in a trigger: neither is in the list of what `decode` checks."""
    await harness.database.execute(
        """
        CREATE FUNCTION overflow() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.request_id LIKE '%-21' THEN NEW.link = 9223372036854775807 + NEW.link; END IF;
                RETURN NEW;
            END
        $$
        """
    )
    await harness.database.execute(
        "CREATE TRIGGER overflow BEFORE INSERT ON usage_events FOR EACH ROW EXECUTE FUNCTION overflow()"
    )
    await harness.database.execute("ALTER TABLE usage_events ADD CONSTRAINT odd CHECK (request_id NOT LIKE '%-13')")
    try:
        events = [harness.event(number) for number in range(40)]
        await harness.publish(*events)
        await harness.bill()
        assert {reason for _, reason in await dead(harness, 2)} == {
            "the ledger cannot hold it: NumericValueOutOfRangeError",
            "the ledger cannot hold it: CheckViolationError",
        }
        await harness.check(*(event for number, event in enumerate(events) if number not in (13, 21)))
    finally:
        await harness.database.execute("ALTER TABLE usage_events DROP CONSTRAINT odd")
        await harness.database.execute("DROP FUNCTION overflow CASCADE")


async def test_a_schema_that_is_not_there_sends_nothing_to_dead(harness):
    """The servers' own state passes: what it hinders waits."""
    events = [harness.event(number) for number in range(5)]
    await harness.publish(*events)
    await harness.database.execute("ALTER TABLE ledger_heads RENAME TO away")
    retries = BILLING_RETRIES.labels("ledger")._value.get
    before = retries()
    async with harness.billing():
        await until(lambda: retries() >= before + 6)  # an error that is the rows' own is tried three times
        assert (await harness.bus.js.stream_info(names.STREAM_DEAD)).state.messages == 0
        await harness.database.execute("ALTER TABLE away RENAME TO ledger_heads")
    await harness.bill()
    await harness.check(*events)


async def test_many_consumers_share_the_work_without_deadlock(harness, caplog):
    """Shuffled duplicates in small batches: every process meets rows that another one is writing."""
    events = [harness.event(number) for number in range(800)]
    await harness.reserve(*events[:50])
    shuffled = events * 3
    random.Random(7).shuffle(shuffled)
    await harness.publish(*shuffled)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(harness.bill(batch_events=100))
    await harness.check(*events)
    quota = await harness.quota()
    assert quota["reserved"] == 0
    assert quota["used"] == sum(event.usage.input_tokens + event.usage.output_tokens for event in events)
    assert not [record for record in caplog.records if "Deadlock" in str(vars(record))]


async def test_what_waits_behind_a_full_batch_goes_with_it(harness):
    """Under lag a transaction is larger: every one adds a link to the account's chain."""
    events = [harness.event(number) for number in range(600)]
    await harness.publish(*events)
    await harness.bill(batch_events=20, lag_batch_events=1000)
    await harness.check(*events)
    assert await harness.database.fetchval("SELECT count(*) FROM ledger_chain") < 20


async def test_usage_is_visible_within_two_seconds(harness):
    async with harness.billing(idle_seconds=0.2, batch_seconds=1.0):
        await harness.publish(harness.event(0))
        await harness.until_done()
        loop = asyncio.get_running_loop()
        spent = []
        for number in range(1, 4):
            start = loop.time()
            await harness.publish(harness.event(number))
            await harness.until_done()
            spent.append(loop.time() - start)
        assert min(spent) < 2, "a busy machine may hold up one of them"


async def test_told_to_stop_it_finishes_its_batch(harness):
    events = [harness.event(number) for number in range(300)]
    async with harness.billing(idle_seconds=1.5, batch_seconds=5.0):
        await harness.publish(*events)

        async def taken():
            with suppress(NatsError, TimeoutError):  # billing has not made it yet
                info = await harness.bus.js.consumer_info(names.STREAM_USAGE, names.CONSUMER_BILLING)
                return info.delivered.consumer_seq >= 300

        await until(taken)
        await asyncio.sleep(0.5)  # delivered is not yet received, and the batch stays open for a second more
    await harness.until_done()
    await harness.check(*events)
