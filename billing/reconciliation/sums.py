"""The audit of sums, in one snapshot: hourly rollups against ledger rows, balances and spending against the rollups."""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from billing.reconciliation.difference import Difference
from ledger.periods import LIFE, day_name, month_name, month_start
from ledger.usage_columns import TOKEN_COLUMNS, TOTAL_TOKENS

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

_QUERY_SECONDS = 300.0  # over a large ledger
_COUNTS = ("requests", *TOKEN_COLUMNS, "cost")
_TOKEN_SUMS = ", ".join(f"sum({column}) AS {column}" for column in TOKEN_COLUMNS)

# A row's month is that of its ticket, which may be the month before the one of its end.
_HOURS = f"""
    WITH ledger AS (
        SELECT date_trunc('hour', end_time, 'UTC') AS hour, account, count(*) FILTER (WHERE last) AS requests,
               {_TOKEN_SUMS}, coalesce(sum(cost), 0) AS cost
        FROM usage_events
        WHERE end_time >= $1 AND month >= date_trunc('month', $1 AT TIME ZONE 'UTC') - interval '1 month'
        GROUP BY 1, 2
    ), hourly AS (
        SELECT hour, account, sum(requests) AS requests, {_TOKEN_SUMS}, sum(cost) AS cost
        FROM usage_hourly WHERE hour >= $1 GROUP BY 1, 2
    )
    SELECT hour, account, to_jsonb(ledger) AS expected, to_jsonb(hourly) AS found
    FROM ledger FULL JOIN hourly USING (hour, account)
"""
_OLDEST = """
    SELECT CASE WHEN rows > hours THEN rows + interval '1 day' ELSE hours END FROM (
        SELECT (SELECT min(hour) FROM usage_hourly) AS hours,
               (SELECT date_trunc('hour', min(month) AT TIME ZONE 'UTC') FROM usage_events) AS rows
    ) oldest
"""
_SCOPES = "('a'), ('k:' || key), (CASE WHEN project <> '' THEN 'p:' || project END)"
_BALANCES = f"""
    WITH hours AS (
        SELECT account, scope, sum({TOTAL_TOKENS})::bigint AS tokens, sum(requests)::bigint AS requests
        FROM usage_hourly, LATERAL (VALUES {_SCOPES}) scopes (scope)
        WHERE scope IS NOT NULL AND hour >= $2 AND hour < $3 GROUP BY 1, 2
    ), balance AS (
        SELECT account, scope, sum(tokens) FILTER (WHERE model = '') AS tokens,
               sum(requests) FILTER (WHERE model = '') AS requests,
               coalesce(sum(tokens) FILTER (WHERE model <> ''), 0) AS tokens_of_models
        FROM balances WHERE period = $1 GROUP BY 1, 2
    )
    SELECT account, scope, hours.tokens AS tokens, hours.requests AS requests, balance.tokens AS found_tokens,
           balance.requests AS found_requests, balance.tokens_of_models
    FROM hours FULL JOIN balance USING (account, scope)
"""
_SPENDING = f"""
    WITH hours AS (
        SELECT account, scope, currency, sum(cost) AS cost
        FROM usage_hourly, LATERAL (VALUES {_SCOPES}) scopes (scope)
        WHERE scope IS NOT NULL AND currency <> '' AND hour >= $2 AND hour < $3 GROUP BY 1, 2, 3
    ), spent AS (
        SELECT account, scope, currency, sum(cost) FILTER (WHERE model = '') AS cost
        FROM spending WHERE period = $1 GROUP BY 1, 2, 3
    )
    SELECT account, scope, currency, hours.cost AS cost, spent.cost AS found
    FROM hours FULL JOIN spent USING (account, scope, currency)
"""


class Period(NamedTuple):
    """A period of the balances, and the hours that it covers."""

    name: str
    begin: datetime
    end: datetime


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FOREVER = datetime(9999, 1, 1, tzinfo=UTC)


def compared_periods(now: datetime) -> list[Period]:
    """Life, this month, today and yesterday; older periods no longer change."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month = month_start(now)
    days = [Period(day_name(start), start, start + timedelta(days=1)) for start in (day, day - timedelta(days=1))]
    return [Period(LIFE, _EPOCH, _FOREVER), Period(month_name(month), month, _FOREVER), *days]


async def oldest_hour(connection: "Connection") -> datetime:
    """The hour from which on the ledger still holds every row."""
    return await connection.fetchval(_OLDEST) or _EPOCH


async def compare_sums(connection: "Connection", since: datetime, now: datetime) -> tuple[int, list[Difference]]:
    """The number of sums compared, and the differences. Call it inside one repeatable-read transaction."""
    rows = await connection.fetch(_HOURS, since, timeout=_QUERY_SECONDS)
    found = list(_hours(rows))
    count = len(rows)
    for period in compared_periods(now):
        rows = await connection.fetch(_BALANCES, *period, timeout=_QUERY_SECONDS)
        found += _balances(period, rows)
        spent = await connection.fetch(_SPENDING, *period, timeout=_QUERY_SECONDS)
        found += [
            Difference("spending", _subject(row, period.name, row["currency"]), _text(row["cost"]), _text(row["found"]))
            for row in spent
            if row["cost"] != row["found"] and (row["cost"] or row["found"])
        ]
        count += len(rows) + len(spent)
    return count, found


def _hours(rows: Sequence["asyncpg.Record"]) -> Iterable[Difference]:
    for row in rows:
        expected, found = _numbers(row["expected"]), _numbers(row["found"])
        for name in _COUNTS:
            if expected.get(name, 0) != found.get(name, 0):
                subject = f"{row['account']} {row['hour']:%Y-%m-%dT%H} {name}"
                yield Difference("hourly", subject, _text(expected.get(name, 0)), _text(found.get(name, 0)))


def _balances(period: Period, rows: Sequence["asyncpg.Record"]) -> Iterable[Difference]:
    for row in rows:
        for name, expected, found in (
            ("tokens", row["tokens"], row["found_tokens"]),
            ("requests", row["requests"], row["found_requests"]),
            ("tokens of all models", row["tokens"], row["tokens_of_models"]),
        ):
            if (expected or 0) != (found or 0):
                yield Difference("balances", _subject(row, period.name, name), _text(expected), _text(found))


def _subject(row: "asyncpg.Record", *words: str) -> str:
    return " ".join((row["account"], row["scope"], *words))


def _numbers(value: str | None) -> dict[str, object]:
    return {} if value is None else json.loads(value, parse_float=Decimal)


def _text(value: object) -> str:
    return "0" if value is None else str(value)
