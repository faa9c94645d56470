"""Usage over the real admin API, from rollups as billing writes them."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from uplion.control.v1.usage_pb2 import QueryUsageRequest, UsageGrouping, UsageOrder

from common.errors import Reason

ROWS = [
    # hour, account, project, key, model, tier, currency, requests, input, cached, output, cost, policy
    ("2026-11-20T22", "a", "p", "k1", "large", "default", "EUR", 2, 100, 10, 50, "0.0000015", ""),
    ("2026-11-20T23", "a", "p", "k1", "small", "default", "", 1, 7, 0, 3, "0", ""),
    ("2026-11-21T00", "a", "", "k2", "large", "batch", "EUR", 1, 40, 0, 20, "0.5", ""),
    ("2026-11-21T00", "b", "", "k3", "large", "default", "USD", 1, 1, 0, 1, "2", ""),
    ("2026-11-21T00", "a", "", "k2", "large", "batch", "", 1, 5, 0, 5, "0", ""),
    ("2026-11-21T00", "a", "", "k2", "none", "default", "", 1, 0, 0, 0, "0", "waived"),
]


async def fill(database):
    for hour, *rest, cost, policy in ROWS:
        moment = datetime.strptime(hour, "%Y-%m-%dT%H").replace(tzinfo=UTC)
        await database.execute(
            "INSERT INTO usage_hourly (hour, account, project, key, model, tier, currency, requests, input_tokens,"
            " cached_tokens, output_tokens, reasoning_tokens, cost, policy)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0, $12::text::numeric, $13)",
            moment,
            *rest,
            cost,
            policy,
        )


async def query(control, **fields):
    response = await control.call(control.usage.QueryUsage, QueryUsageRequest(**fields))
    return [
        (r.group, r.requests, r.input_tokens, r.cached_tokens, r.output_tokens, r.cost_micros, r.currency)
        for r in response.rows
    ]


def moment(text):
    stamp = Timestamp()
    stamp.FromJsonString(text)
    return stamp


async def test_without_usage_there_is_one_row_of_zeros(control):
    assert await query(control) == [("all", 0, 0, 0, 0, 0, "")]
    assert await query(control, grouping=UsageGrouping.USAGE_GROUPING_MODEL) == []


async def test_groups_sum_what_belongs_together_and_never_two_currencies(control, database):
    await fill(database)
    assert await query(control) == [
        ("all", 1, 1, 0, 1, 2_000_000, "USD"),
        ("all", 3, 140, 10, 70, 500_002, "EUR"),
        ("all", 3, 12, 0, 8, 0, ""),
    ]
    assert await query(control, grouping=UsageGrouping.USAGE_GROUPING_MODEL, account="a") == [
        ("large", 4, 145, 10, 75, 500_002, "EUR"),
        ("small", 1, 7, 0, 3, 0, ""),
        ("none", 1, 0, 0, 0, 0, ""),
    ]
    assert [row[:2] for row in await query(control, grouping=UsageGrouping.USAGE_GROUPING_KEY)] == [
        ("k1", 3),
        ("k2", 3),
        ("k3", 1),
    ]


async def test_hours_and_days_come_newest_first(control, database):
    await fill(database)
    hours = await query(control, grouping=UsageGrouping.USAGE_GROUPING_HOUR, account="a")
    assert [row[:2] for row in hours] == [
        ("2026-11-21T00:00:00Z", 3),
        ("2026-11-20T23:00:00Z", 1),
        ("2026-11-20T22:00:00Z", 2),
    ]
    days = await query(control, grouping=UsageGrouping.USAGE_GROUPING_DAY, account="a")
    assert [row[:2] for row in days] == [("2026-11-21T00:00:00Z", 3), ("2026-11-20T00:00:00Z", 3)]


async def test_times_cut_at_hours(control, database):
    await fill(database)
    found = await query(
        control, account="a", start_time=moment("2026-11-20T23:30:00Z"), end_time=moment("2026-11-21T00:30:00Z")
    )
    assert found == [("all", 1, 7, 0, 3, 0, "")]


async def test_every_wrong_field_is_named(control):
    cases = {
        "grouping": QueryUsageRequest(grouping=99),  # type: ignore[arg-type]
        "account": QueryUsageRequest(account="x" * 257),
        "order": QueryUsageRequest(order=99),  # type: ignore[arg-type]
        "top": QueryUsageRequest(top=-1),
        "start_time": QueryUsageRequest(start_time=Timestamp(seconds=1 << 60)),
        "end_time": QueryUsageRequest(end_time=Timestamp(seconds=-(1 << 60))),
    }
    for param, request in cases.items():
        refused = await control.refusal(control.usage.QueryUsage, request)
        assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, param)


async def groups(control, grouping, **fields):
    request = QueryUsageRequest(grouping=UsageGrouping.Value(f"USAGE_GROUPING_{grouping}"), **fields)
    return [(row.group, row.currency) for row in (await control.call(control.usage.QueryUsage, request)).rows]


async def test_every_cut_and_every_grouping(control, database):
    await fill(database)
    assert await groups(control, "ACCOUNT") == [("a", "EUR"), ("b", "USD")]
    assert await groups(control, "PROJECT") == [("p", "EUR"), ("", "USD"), ("", "EUR"), ("", "")]
    assert await groups(control, "TIER") == [
        ("default", "USD"),
        ("default", "EUR"),
        ("default", ""),
        ("batch", "EUR"),
    ]
    for cut, counted in (({"project": "p"}, 3), ({"key": "k1"}, 3), ({"model": "small"}, 1), ({"tier": "batch"}, 2)):
        assert sum(row[1] for row in await query(control, **cut)) == counted


async def test_the_top_spenders_are_found_in_each_currency(control, database):
    await fill(database)
    cost = UsageOrder.USAGE_ORDER_COST
    assert await groups(control, "KEY", order=cost) == [("k2", "EUR"), ("k3", "USD"), ("k1", "EUR")]
    assert await groups(control, "KEY", order=cost, top=2) == [("k2", "EUR"), ("k3", "USD")]
    assert await groups(control, "KEY", top=1) == [("k1", "EUR")]
    assert await groups(control, "HOUR", top=1, order=UsageOrder.USAGE_ORDER_TOKENS) == [
        ("2026-11-20T22:00:00Z", "EUR")
    ]


async def test_what_has_no_price_is_marked_and_what_is_waived_needs_none(control, database):
    await fill(database)
    (row,) = (await control.call(control.usage.QueryUsage, QueryUsageRequest(account="a"))).rows
    assert (row.requests, row.unpriced_requests, row.unpriced_tokens) == (6, 2, 20)
    assert (row.cost, row.cost_micros) == ("0.5000015", 500_002)
