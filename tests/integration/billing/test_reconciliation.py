"""Everything that counts agrees, and whatever does not is found: one test for each thing that can be wrong."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import nats.errors
import pytest
from uplion.billing.v1.reconciliation_pb2 import Reconciliation

from billing import metrics
from billing.reconciliation import counters as counters_module
from billing.reconciliation.counters import connect_counters
from billing.reconciliation.run import Reconciler
from common import names
from tests.kit.until import until

Tamper = Callable[[Any], Awaitable[object]]


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """With counters that a batch may just be raising: here none is."""
    monkeypatch.setattr(counters_module, "_SETTLED_SECONDS", 1.0)


@asynccontextmanager
async def reconciler(harness: Any) -> AsyncIterator[Reconciler]:
    async with connect_counters(harness.settings.redis_url) as counters:
        yield Reconciler(harness.bus, harness.database, counters)


async def ours(harness: Any, *, whole: bool = True) -> tuple[Reconciliation, set[str]]:
    """A run, and which checks of it failed; Valkey holds other tests' accounts too."""
    async with reconciler(harness) as reconciling:
        report = await reconciling.run(whole=whole)
    found = [
        each
        for each in report.differences
        if harness.account in each.subject or each.check not in ("counters", "reservations")
    ]
    return report, {each.check for each in found}


async def billed(harness: Any, count: int = 30) -> None:
    events = [harness.event(number) for number in range(count)]
    await harness.reserve(*events)
    await harness.publish(*events)
    await harness.bill()


async def test_sums_that_agree_are_clean_and_the_run_is_kept(harness: Any) -> None:
    await billed(harness)
    report, found = await ours(harness)
    assert found == set()
    assert (report.stream_events, report.pending_events, report.whole) == (30, 0, True)
    assert report.sums > 10
    assert report.counters >= 4
    kept = await harness.database.fetchrow("SELECT * FROM reconciliations ORDER BY id DESC LIMIT 1")
    assert kept["stream_sequence"] == report.stream_sequence
    again, found = await ours(harness, whole=False)
    assert (again.stream_events, found) == (0, set())


async def test_what_is_on_its_way_is_no_difference(harness: Any) -> None:
    await billed(harness)
    await harness.publish(*[harness.event(number) for number in range(30, 40)])
    report, found = await ours(harness)
    async with asyncio.timeout(60):
        while report.pending_events < 10:  # the server acknowledges a message before it counts it as pending
            assert (report.stream_events, found) == (30, set())
            report, found = await ours(harness)
    assert (report.pending_events, report.stream_events, found) == (10, 30, set())


async def _more_used(harness: Any) -> None:
    await harness.redis.hincrby(names.used_key(harness.account, "life"), names.counter_field("t", "a"), 1)


async def _sum_of_reserved(harness: Any) -> None:
    await harness.redis.hincrby(names.reserved_key(harness.account), names.counter_field("t", "a"), 5)


async def _overdue(harness: Any) -> None:
    await harness.redis.zadd(names.reservations_key(harness.account), {"forgotten": 1e12})
    await harness.redis.hset(names.reserved_key(harness.account), "since", "x")


_TWICE = """
    ALTER TABLE usage_events DROP CONSTRAINT usage_events_pkey;
    INSERT INTO usage_events SELECT * FROM usage_events WHERE request_id LIKE '%-7'
"""


def sql(text: str) -> Tamper:
    async def tamper(harness: Any) -> None:
        await harness.database.execute(text)

    return tamper


@pytest.mark.parametrize(
    ("tamper", "checks"),
    [
        (sql("UPDATE usage_hourly SET output_tokens = output_tokens + 1 WHERE key = 'key0'"), {"hourly", "balances"}),
        (sql("UPDATE usage_hourly SET requests = requests - 1 WHERE key = 'key1'"), {"hourly", "balances"}),
        (sql("UPDATE balances SET tokens = tokens + 1 WHERE scope = 'k:key2' AND model = ''"), {"balances"}),
        (sql("UPDATE balances SET tokens = tokens + 1 WHERE model <> '' AND period = 'life'"), {"balances"}),
        (sql("DELETE FROM usage_events WHERE request_id LIKE '%-7'"), {"lost", "hourly"}),
        (sql(_TWICE), {"double", "hourly"}),
        (_more_used, {"counters"}),
        (_sum_of_reserved, {"reservations"}),
        (_overdue, {"reservations"}),
    ],
    ids=["hour", "requests", "balance", "model's balance", "lost row", "double row", "used", "reserved", "overdue"],
)
async def test_what_does_not_agree_is_found(harness: Any, tamper: Tamper, checks: set[str]) -> None:
    await billed(harness)
    await tamper(harness)
    _, found = await ours(harness)
    assert checks <= found
    assert found <= checks | {"counters"}  # a balance that was moved is no longer what Valkey has


async def test_a_lost_event_stays_a_difference(harness: Any) -> None:
    await billed(harness)
    await harness.database.execute("DELETE FROM usage_events WHERE request_id LIKE '%-7'")
    for _ in range(2):
        _, found = await ours(harness, whole=False)
        assert "lost" in found


async def test_many_differences_of_one_check_hide_no_other(harness: Any) -> None:
    await billed(harness, 1100)
    await harness.database.execute("DELETE FROM usage_events")
    report, found = await ours(harness)
    assert {"lost", "hourly"} <= found
    assert sum(each.check == "lost" for each in report.differences) == 125
    assert metrics.BILLING_DIFFERENCES.labels("lost")._value.get() == 1100


async def test_money_that_does_not_agree_is_found(harness: Any) -> None:
    await harness.database.execute(
        "INSERT INTO prices (model, effective_from, currency, input_per_million_tokens, cached_per_million_tokens,"
        " output_per_million_tokens, per_request) VALUES ('large', '2024-01-01', 'USD', 1, 1, 2, 0)"
    )
    await billed(harness)
    _, found = await ours(harness)
    assert found == set()
    await harness.database.execute("UPDATE spending SET cost = cost + 0.01 WHERE model = '' AND period = 'life'")
    _, found = await ours(harness)
    assert "spending" in found


async def test_what_lies_in_dead_is_one_difference_and_not_a_lost_event(harness: Any) -> None:
    await billed(harness)
    await harness.publish(b"\xff\xff", harness.event(99, account=""))
    await harness.bill()
    _, found = await ours(harness)
    assert found == {"dead"}


async def test_a_run_is_made_when_asked_for_and_says_when_it_cannot(harness: Any) -> None:
    await billed(harness)
    answer = None

    async def answered() -> bool:
        nonlocal answer
        with suppress(nats.errors.NoRespondersError):
            answer = await harness.bus.request(names.SUBJECT_RECONCILE, seconds=60)
        return answer is not None

    async with harness.billing():
        await until(answered)
        assert answer is not None
        assert Reconciliation.FromString(answer).stream_events == 30
        await harness.database.execute("ALTER TABLE usage_hourly RENAME TO gone")
        answer = await harness.bus.request(names.SUBJECT_RECONCILE, seconds=60)
        assert answer == b""
        await harness.database.execute("ALTER TABLE gone RENAME TO usage_hourly")
