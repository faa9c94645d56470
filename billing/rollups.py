"""What a batch adds to hourly rollups, balances and spending, and the totals that it leads to."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from billing.entry import EPOCH, Entry
from billing.policy import WAIVE, Action
from billing.pricing import Charge, amount

if TYPE_CHECKING:
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

LIFE = "life"
ALL_MODELS = ""
_HOUR_MICROSECONDS = 3_600_000_000

# Groups of entries travel by COPY (arrays as parameters cost ten times as much) and are added up by the database.
_ADDED_COLUMNS = {
    "hour": "timestamptz",
    "month": "text",
    "day": "text",
    "account": "text",
    "project": "text",
    "key": "text",
    "billed": "text",
    "tier": "text",
    "currency": "text",
    "price_version": "bigint",
    "policy": "text",
    "model": "text",
    "requests": "bigint",
    "input_tokens": "bigint",
    "cached_tokens": "bigint",
    "cache_write_tokens": "bigint",
    "output_tokens": "bigint",
    "reasoning_tokens": "bigint",
    "compute_seconds": "numeric",
    "cost": "numeric",
}
_ENSURE_ADDED = "CREATE TEMPORARY TABLE IF NOT EXISTS added ({}) ON COMMIT DELETE ROWS".format(
    ", ".join(f"{name} {kind}" for name, kind in _ADDED_COLUMNS.items())
)
_ADD_HOURLY = """
    INSERT INTO usage_hourly AS hourly (hour, account, project, key, model, tier, currency, price_version, policy,
        requests, input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, compute_seconds,
        cost)
    SELECT hour, account, project, key, billed, tier, currency, price_version, policy,
        sum(requests), sum(input_tokens), sum(cached_tokens), sum(cache_write_tokens), sum(output_tokens),
        sum(reasoning_tokens), sum(compute_seconds), sum(cost)
    FROM added GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9 ORDER BY 1, 2, 3, 4, 5, 6, 7, 8, 9
    ON CONFLICT (hour, account, project, key, model, tier, currency, price_version, policy) DO UPDATE SET
        requests = hourly.requests + excluded.requests,
        input_tokens = hourly.input_tokens + excluded.input_tokens,
        cached_tokens = hourly.cached_tokens + excluded.cached_tokens,
        cache_write_tokens = hourly.cache_write_tokens + excluded.cache_write_tokens,
        output_tokens = hourly.output_tokens + excluded.output_tokens,
        reasoning_tokens = hourly.reasoning_tokens + excluded.reasoning_tokens,
        compute_seconds = hourly.compute_seconds + excluded.compute_seconds,
        cost = hourly.cost + excluded.cost
"""
# Every balance that a row of `added` counts on; scopes as `ledger.limits.scope` writes them.
_BALANCES = f"""
    LATERAL (SELECT 'a' UNION ALL SELECT 'k:' || key UNION ALL SELECT 'p:' || project WHERE project <> '') AS s (scope),
    LATERAL (SELECT '{ALL_MODELS}' UNION ALL SELECT model WHERE model <> '{ALL_MODELS}') AS m (asked),
    LATERAL (VALUES ('{LIFE}'), (month), (day)) AS p (period)
"""
_ADD_BALANCES = f"""
    INSERT INTO balances AS balance (account, scope, model, period, tokens, requests)
    SELECT account, scope, asked, period, sum(input_tokens + output_tokens), sum(requests)
    FROM added, {_BALANCES} GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
    ON CONFLICT (account, scope, model, period) DO UPDATE SET
        tokens = balance.tokens + excluded.tokens,
        requests = balance.requests + excluded.requests,
        update_time = now()
    RETURNING account, scope, model, period, tokens
"""  # noqa: S608  # our own text
# round() of an exact half goes away from zero; below an odd half of an even number it goes down.
MILLIONTHS = """
    (CASE WHEN mod(cost * 2000000, 4) = 1 THEN floor(cost * 1000000) ELSE round(cost * 1000000) END)::bigint
"""
_ADD_SPENDING = f"""
    WITH spent AS (
        INSERT INTO spending AS spent (account, scope, model, period, currency, cost)
        SELECT account, scope, asked, period, currency, sum(cost)
        FROM added, {_BALANCES} WHERE currency <> '' GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
        ON CONFLICT (account, scope, model, period, currency) DO UPDATE SET cost = spent.cost + excluded.cost
        RETURNING *
    )
    SELECT account, scope, model, period, currency, {MILLIONTHS} FROM spent
"""  # noqa: S608  # our own text
_WANTED = f"""
    SELECT DISTINCT account, scope, asked AS model, period
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
        AS holder (month, day, account, project, key, model), {_BALANCES}
"""  # noqa: S608  # our own text
_READ_BALANCES = f"""
    SELECT account, scope, model, period, tokens
    FROM balances JOIN ({_WANTED}) AS wanted USING (account, scope, model, period)
"""  # noqa: S608  # our own text
_READ_SPENDING = f"""
    SELECT account, scope, model, period, currency, {MILLIONTHS}
    FROM spending JOIN ({_WANTED}) AS wanted USING (account, scope, model, period)
"""  # noqa: S608  # our own text


class Balance(NamedTuple):
    """What is counted on: a row of `balances`. `scope` as `ledger.limits.scope` writes it."""

    account: str
    scope: str
    model: str  # as asked for; ALL_MODELS
    period: str  # LIFE, "2026-11", "2026-11-21"


@dataclass(slots=True)
class Totals:
    """Where everything that a batch touched stands after it; values only ever grow."""

    tokens: dict[Balance, int] = field(default_factory=dict)
    cost_millionths: dict[tuple[Balance, str], int] = field(default_factory=dict)  # by currency; half to even


@dataclass(frozen=True, slots=True)
class Counted:
    """What a batch added, in all: the numbers of its metrics."""

    requests: int = 0
    tokens: dict[str, int] = field(default_factory=dict)  # by class; every token is in one
    cost: dict[str, Decimal] = field(default_factory=dict)  # by currency
    unpriced_tokens: int = 0


class _Sum:
    """What one group of entries adds. `compute` in microseconds, `units` of money as pricing counts it."""

    __slots__ = ("cache_write", "cached", "compute", "input", "output", "reasoning", "requests", "units")

    def __init__(self) -> None:
        self.requests = self.input = self.cached = self.cache_write = self.output = self.reasoning = 0
        self.compute = self.units = 0

    def add(self, other: "_Sum") -> None:
        for name in _Sum.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


# hour since 1970, account, project, key, model that is billed, tier, currency, price version, policy, model asked for
_Group = tuple[int, str, str, str, str, str, str, int, str, str]


class Sums:
    """What new entries add."""

    def __init__(self) -> None:
        self._groups: dict[_Group, _Sum] = defaultdict(_Sum)

    def add(self, entry: Entry, charge: Charge | None, action: Action) -> None:
        """Counts one entry; without a charge its currency is ''."""
        version, units, currency = charge or (0, 0, "")
        group = self._groups[
            entry.end_microseconds // _HOUR_MICROSECONDS,
            entry.account,
            entry.project,
            entry.key,
            entry.model_served or entry.model,
            entry.tier,
            currency,
            version,
            action,
            entry.model,
        ]
        group.requests += entry.last  # an attempt that another one follows is not another request
        group.input += entry.input_tokens
        group.cached += entry.cached_tokens
        group.cache_write += entry.cache_write_tokens
        group.output += entry.output_tokens
        group.reasoning += entry.reasoning_tokens
        group.compute += entry.compute_microseconds or 0
        group.units += units

    def counted(self) -> Counted:
        """All groups together."""
        whole = _Sum()
        units: dict[str, int] = defaultdict(int)
        unpriced_tokens = 0
        for group, added in self._groups.items():
            currency, policy = group[6], group[8]
            whole.add(added)
            if currency:
                units[currency] += added.units
            elif policy != WAIVE:
                unpriced_tokens += added.input + added.output
        tokens = {
            "input": whole.input - whole.cached - whole.cache_write,
            "cached_input": whole.cached,
            "cache_write": whole.cache_write,
            "output": whole.output - whole.reasoning,
            "reasoning": whole.reasoning,
        }
        return Counted(whole.requests, tokens, {name: amount(units[name]) for name in units}, unpriced_tokens)

    async def write(self, connection: "Connection") -> Totals:
        """Adds everything, each table in sorted order, and says what it became."""
        if not self._groups:
            return Totals()
        await connection.execute(_ENSURE_ADDED)
        await connection.copy_to_table("added", source=self._lines(), columns=list(_ADDED_COLUMNS))
        await connection.execute(_ADD_HOURLY)
        return _totals(await connection.fetch(_ADD_BALANCES), await connection.fetch(_ADD_SPENDING))

    async def _lines(self) -> AsyncIterator[bytes]:
        lines = []
        for (hour, account, project, key, billed, tier, *price, model), added in self._groups.items():
            start, month, day = _texts(hour)
            currency, version, policy = price
            tokens = f"{added.input}\t{added.cached}\t{added.cache_write}\t{added.output}\t{added.reasoning}"
            lines.append(
                f"{start}\t{month}\t{day}\t{account}\t{project}\t{key}\t{billed}\t{tier}\t{currency}\t"
                f"{version}\t{policy}\t{model}\t{added.requests}\t{tokens}\t"
                f"{Decimal(added.compute).scaleb(-6):f}\t{amount(added.units):f}\n"
            )
        yield "".join(lines).encode()


async def read_totals(connection: "Connection", entries: Iterable[Entry]) -> Totals:
    """Of what brought nothing new: a duplicate may come because its settlement was interrupted."""
    holders = {
        (
            *_texts(entry.end_microseconds // _HOUR_MICROSECONDS)[1:],
            entry.account,
            entry.project,
            entry.key,
            entry.model,
        )
        for entry in entries
    }
    columns = list(zip(*holders, strict=True))
    return _totals(await connection.fetch(_READ_BALANCES, *columns), await connection.fetch(_READ_SPENDING, *columns))


@lru_cache(maxsize=256)
def _texts(hour: int) -> tuple[str, str, str]:
    """An hour's start, month and day."""
    start = EPOCH + timedelta(hours=hour)
    return start.isoformat(), *periods(start)[1:]


def periods(moment: datetime) -> tuple[str, str, str]:
    """The periods that a moment (UTC) counts in."""
    return LIFE, f"{moment:%Y-%m}", f"{moment:%Y-%m-%d}"


def _totals(balances: "list[asyncpg.Record]", spending: "list[asyncpg.Record]") -> Totals:
    return Totals(
        {Balance(*row[:4]): row[4] for row in balances},
        {(Balance(*row[:4]), row[4]): row[5] for row in spending},
    )
