"""What a batch becomes: balances by project, model and period, costs by policy, links of a chain; what is forgotten."""

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration
from uplion.billing.v1.usage_event_pb2 import AttemptStatus

from billing.duties.retention import forget, oldest_month
from billing.entry import Arrival, decode
from billing.rollups import Balance
from billing.store import LedgerWriter
from control.schema.migrate import migrate, migrations

CANCELLED = AttemptStatus.ATTEMPT_STATUS_CANCELLED
FAILED = AttemptStatus.ATTEMPT_STATUS_FAILED
WORKER_LOST = AttemptStatus.ATTEMPT_STATUS_WORKER_LOST
PRICE = """
    INSERT INTO prices (model, effective_from, currency, input_per_million_tokens, cached_per_million_tokens,
        cache_write_per_million_tokens, output_per_million_tokens, reasoning_per_million_tokens, per_gpu_second)
    VALUES ('large', '2025-01-01', 'EUR', 1, 0.5, 1.25, 10, 5, 2)
"""


async def record(harness, *events):
    return await LedgerWriter(harness.database).record(
        [decode(event.SerializeToString(), Arrival(time.time_ns(), None)) for event in events]
    )


async def test_balances_count_by_scope_model_and_period_and_the_totals_say_so(harness):
    await harness.database.execute(PRICE)
    moment = datetime(2026, 11, 3, 23, 59, tzinfo=UTC)
    first = harness.event(0, key="k", project="p", model="alias")
    first.end_time.FromDatetime(moment)
    second = harness.event(1, key="k")
    second.end_time.FromDatetime(moment + timedelta(minutes=2))
    recorded = await record(harness, first, second)
    one, two = 100 + 10, 101 + 11
    expected = {}
    for scope, alias, large in (("a", one, two), ("k:k", one, two), ("p:p", one, 0)):
        for model, early, late in (("", alias, large), ("alias", alias, 0), ("large", 0, large)):
            for period, tokens in (
                ("life", early + late),
                ("2026-11", early + late),
                ("2026-11-03", early),
                ("2026-11-04", late),
            ):
                if tokens:
                    expected[Balance(harness.account, scope, model, period)] = tokens
    assert recorded.totals.tokens == expected
    stored = await harness.database.fetch("SELECT account, scope, model, period, tokens FROM balances")
    assert {Balance(*row[:4]): row[4] for row in stored} == expected
    assert recorded.totals.cost_millionths[Balance(harness.account, "a", "", "life"), "EUR"] == 100 + 101 + 100 + 110
    assert recorded.totals.cost_millionths.keys() == {(balance, "EUR") for balance in expected}
    again = await record(harness, second)
    assert (again.new, again.duplicates) == (0, 1)
    touched = {b for b in expected if not b.scope.startswith("p") and b.model != "alias" and b.period != "2026-11-03"}
    assert again.totals.tokens == {balance: expected[balance] for balance in touched}
    assert again.totals.cost_millionths.keys() == {(balance, "EUR") for balance in touched}
    await harness.check(first, second)


async def test_every_kind_of_use_is_priced_and_rolled_up(harness):
    await harness.database.execute(PRICE)
    event = harness.event(project="p", tier="batch", compute_duration=Duration(seconds=1, nanos=500_000_999))
    usage = event.usage
    usage.input_tokens, usage.cached_tokens, usage.cache_write_tokens = 1000, 300, 200
    usage.output_tokens, usage.reasoning_tokens = 100, 40
    await record(harness, event)
    cost = Decimal(500 * 1 + 300 * Decimal("0.5") + 200 * Decimal("1.25") + 60 * 10 + 40 * 5) / 1_000_000 + 3
    row = await harness.database.fetchrow("SELECT * FROM usage_events")
    assert (row["cost"], row["compute_seconds"], row["cache_write_tokens"]) == (cost, 1.5, 200)
    hour = await harness.database.fetchrow("SELECT * FROM usage_hourly")
    assert (hour["price_version"], hour["policy"]) == (row["price_version"], "")
    assert (hour["project"], hour["tier"], hour["compute_seconds"], hour["cost"]) == (
        "p",
        "batch",
        Decimal("1.5"),
        cost,
    )
    assert (hour["cache_write_tokens"], hour["reasoning_tokens"]) == (200, 40)
    await harness.check(event)


async def test_abnormal_ends_cost_what_the_accounts_policy_says(harness):
    await harness.database.execute(PRICE)
    await harness.database.execute(
        "INSERT INTO accounts (id, name, billing_policy) VALUES ($1, 'own', $2)",
        harness.account,
        '{"cancelled": "input_only", "failed": "bill"}',
    )
    nothing = harness.event(5)
    nothing.usage.output_tokens = 0
    unknown = harness.event(6)
    unknown.ClearField("usage")
    events = [
        harness.event(0, status=CANCELLED),
        harness.event(0, status=CANCELLED, account="with defaults"),
        harness.event(7, status=FAILED),
        harness.event(7, status=FAILED, account="with defaults", request_id="other"),
        nothing,
        unknown,
        harness.event(14, status=AttemptStatus.ATTEMPT_STATUS_REFUSED),
    ]
    events[1].request_id = "default"
    await record(harness, *events)
    rows = {
        (row["request_id"], row["account"]): (row["policy"], row["cost"] and row["cost"] * 1_000_000)
        for row in await harness.database.fetch("SELECT * FROM usage_events")
    }
    assert [rows[event.request_id, event.account] for event in events] == [
        ("input_only", 100),
        ("", 200),
        ("", 100 + 120),
        ("waived", 0),
        ("waived", 0),
        ("", None),
        ("waived", 0),
    ]
    tokens = await harness.database.fetchval("SELECT sum(input_tokens + output_tokens) FROM usage_events")
    assert tokens == sum(event.usage.input_tokens + event.usage.output_tokens for event in events)
    await harness.check(*events)


@pytest.mark.parametrize("policy", ['{"refused": "bill"}', '{"failed": "free"}', '{"failed": 1}', "[]"])
async def test_a_policy_billing_cannot_read_is_refused_by_the_database(harness, policy):
    with pytest.raises(asyncpg.CheckViolationError):
        await harness.database.execute("INSERT INTO accounts (id, name, billing_policy) VALUES ('x', 'x', $1)", policy)


async def test_of_two_events_of_one_attempt_in_a_batch_the_workers_counts(harness):
    worker, router = harness.event(0), harness.event(0, status=WORKER_LOST, provider="", model_revision=0)
    router.usage.output_tokens = 3
    for number, pair in enumerate(((worker, router), (router, worker))):
        for event in pair:
            event.request_id = f"r{number}"
        recorded = await record(harness, *pair)
        assert (recorded.new, recorded.duplicates) == (1, 1)
    assert await harness.database.fetchval("SELECT count(*) FROM usage_events WHERE output_tokens = 10") == 2


@pytest.mark.parametrize("change", ["UPDATE prices SET per_request = 1", "DELETE FROM prices", "TRUNCATE prices"])
async def test_a_price_never_changes(harness, change):
    await harness.database.execute(PRICE)
    with pytest.raises(asyncpg.RestrictViolationError, match="rows of prices never change"):
        await harness.database.execute(change)


@pytest.mark.parametrize("column", ["cost = 0", "output_tokens = 0", "key = 'other'", "end_time = now()", "link = 2"])
async def test_a_changed_row_breaks_the_chain(harness, column):
    for number in range(0, 30, 10):
        await record(harness, *(harness.event(number + part) for part in range(10)))
    await harness.check_chain()
    await harness.database.execute(f"UPDATE usage_events SET {column} WHERE request_id = $1", f"{harness.account}-4")
    with pytest.raises(AssertionError):
        await harness.check_chain()


async def test_old_months_and_balances_are_forgotten_and_closed_months_take_no_more(harness):
    now = datetime.now(UTC)
    months = [oldest_month(now.timestamp(), age) for age in range(3)]
    events = []
    for number, age in enumerate((0, 50, 460)):
        event = harness.event(number)
        event.end_time.FromDatetime(now - timedelta(days=age))
        event.ticket_time.FromDatetime(datetime.combine(months[number], datetime.min.time()))
        events.append(event)
    await record(harness, *events)
    await forget(harness.database, 1, time.time())  # the month before last is closed, and stays a month longer
    assert await harness.database.fetchval("SELECT count(*) FROM usage_events") == 3
    await forget(harness.database, 0, time.time())
    assert await harness.database.fetchval("SELECT count(*) FROM usage_events") == 2
    assert await harness.database.fetchval("SELECT sum(requests) FROM usage_hourly") == 3
    for table in ("balances", "spending"):
        periods = await harness.database.fetch(f"SELECT DISTINCT period FROM {table} WHERE length(period) <> 4")
        assert len(periods) <= 3
        assert not [row for row in periods if row[0] == f"{now - timedelta(days=460):%Y-%m}"]
    closed = harness.event(9)
    closed.ticket_time.FromDatetime(datetime.combine(months[2], datetime.min.time()))
    await harness.publish(closed)
    await harness.bill(retention_months=1)
    assert await harness.database.fetchval("SELECT count(*) FROM usage_events") == 2
    assert (await harness.bus.js.stream_info("DEAD")).state.messages == 1


def test_months_are_counted_back_over_years():
    moment = datetime(2026, 3, 31, tzinfo=UTC).timestamp()
    assert [str(oldest_month(moment, months)) for months in (0, 3, 15, 10**6)] == [
        "2026-03-01",
        "2025-12-01",
        "2024-12-01",
        "0001-02-01",
    ]


async def test_a_ledger_from_before_keeps_its_totals_and_gains_months_days_and_models(postgres_database):
    connection = await asyncpg.connect(postgres_database)
    steps = migrations()
    await migrate(connection, steps[:3])
    await connection.execute("""
        SELECT ensure_usage_partition('2026-11-01');
        INSERT INTO usage_events (request_id, attempt, month, account, key, model, model_served, model_revision,
            provider, lane, tier, operation, status, finish_reason, error_reason, input_tokens, cached_tokens,
            output_tokens,
            reasoning_tokens, end_time, last, reservation, price_version, cost, currency)
        SELECT number, 1, '2026-11-01', 'a', 'k', 'm', '', 1, '', '', '', '', 'completed', '', '', 3, 0, 4, 0,
            '2026-11-30 23:30+00'::timestamptz + number * interval '1 hour', true, '', 1, 0.5, 'EUR'
        FROM generate_series(0, 1) AS number;
        INSERT INTO balances (account, key, tokens, requests) VALUES ('a', '', 21, 3), ('a', 'k', 21, 3);
        INSERT INTO spending (account, key, currency, cost) VALUES ('a', '', 'EUR', 1.5), ('a', 'k', 'EUR', 1.5);
        """)
    await migrate(connection, steps)
    rows = await connection.fetch("""
        SELECT model, period, tokens, requests, cost FROM balances JOIN spending USING (account, scope, model, period)
        WHERE scope = 'k:k' ORDER BY model, period
        """)
    assert [tuple(row) for row in rows] == [
        ("", "2026-11", 7, 1, Decimal("0.5")),
        ("", "2026-11-30", 7, 1, Decimal("0.5")),
        ("", "2026-12", 7, 1, Decimal("0.5")),
        ("", "2026-12-01", 7, 1, Decimal("0.5")),
        ("", "life", 21, 3, Decimal("1.5")),
        ("m", "2026-11", 7, 1, Decimal("0.5")),
        ("m", "2026-11-30", 7, 1, Decimal("0.5")),
        ("m", "2026-12", 7, 1, Decimal("0.5")),
        ("m", "2026-12-01", 7, 1, Decimal("0.5")),
        ("m", "life", 14, 2, Decimal("1.0")),
    ]
    assert await connection.fetchval("SELECT count(*) FROM balances WHERE scope = 'a'") == 10
    await connection.close()
