"""Usage over the real admin API, from rollups as billing writes them."""

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from uplion.control.v1.usage_pb2 import QueryUsageRequest, UsageGrouping

from common.errors import Reason

ROWS = [
    # hour, account, key, model, currency, requests, input, cached, output, reasoning, cost
    ("2026-11-20T22", "a", "k1", "large", "EUR", 2, 100, 10, 50, 0, "0.0000015"),
    ("2026-11-20T23", "a", "k1", "small", "", 1, 7, 0, 3, 0, "0"),
    ("2026-11-21T00", "a", "k2", "large", "EUR", 1, 40, 0, 20, 0, "0.5"),
    ("2026-11-21T00", "b", "k3", "large", "USD", 1, 1, 0, 1, 0, "2"),
    ("2026-11-21T00", "a", "k2", "large", "", 1, 5, 0, 5, 0, "0"),
]


async def fill(database):
    for hour, *rest, cost in ROWS:
        moment = datetime.strptime(hour, "%Y-%m-%dT%H").replace(tzinfo=UTC)
        await database.execute(
            "INSERT INTO usage_hourly VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::text::numeric)",
            moment,
            *rest,
            cost,
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
    assert await query(control) == [("all", 5, 152, 10, 78, 500_002, "EUR"), ("all", 1, 1, 0, 1, 2_000_000, "USD")]
    assert await query(control, grouping=UsageGrouping.USAGE_GROUPING_MODEL, account="a") == [
        ("large", 4, 145, 10, 75, 500_002, "EUR"),
        ("small", 1, 7, 0, 3, 0, ""),
    ]
    assert [row[:2] for row in await query(control, grouping=UsageGrouping.USAGE_GROUPING_KEY)] == [
        ("k1", 3),
        ("k2", 2),
        ("k3", 1),
    ]


async def test_hours_and_days_come_newest_first(control, database):
    await fill(database)
    hours = await query(control, grouping=UsageGrouping.USAGE_GROUPING_HOUR, account="a")
    assert [row[:2] for row in hours] == [
        ("2026-11-21T00:00:00Z", 2),
        ("2026-11-20T23:00:00Z", 1),
        ("2026-11-20T22:00:00Z", 2),
    ]
    days = await query(control, grouping=UsageGrouping.USAGE_GROUPING_DAY, account="a")
    assert [row[:2] for row in days] == [("2026-11-21T00:00:00Z", 2), ("2026-11-20T00:00:00Z", 3)]


async def test_times_cut_at_hours(control, database):
    await fill(database)
    found = await query(
        control, account="a", start_time=moment("2026-11-20T23:30:00Z"), end_time=moment("2026-11-21T00:30:00Z")
    )
    assert found == [("all", 1, 7, 0, 3, 0, "")]


async def test_every_wrong_field_is_named(control):
    cases = {
        "grouping": QueryUsageRequest(grouping=99),  # type: ignore[arg-type]
        "account": QueryUsageRequest(account="x" * 101),
        "start_time": QueryUsageRequest(start_time=Timestamp(seconds=1 << 60)),
        "end_time": QueryUsageRequest(end_time=Timestamp(seconds=-(1 << 60))),
    }
    for param, request in cases.items():
        refused = await control.refusal(control.usage.QueryUsage, request)
        assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, param)
