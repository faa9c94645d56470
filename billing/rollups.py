"""Rollups: what a batch adds to hourly sums, balances and spending, and the totals that result."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from billing.entry import EPOCH, Entry
from billing.policy import WAIVE, Action
from billing.pricing import Charge
from ledger.limits import COST_BUDGET, TOKEN_BUDGET
from ledger.periods import LIFE, day_name, month_name
from ledger.prices import amount
from ledger.usage_columns import ROLLUP_COLUMNS, TOKEN_CLASSES, TOKEN_COLUMNS, TOTAL_TOKENS, disjoint, total

if TYPE_CHECKING:
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

ALL_MODELS = ""
_HOUR_MICROSECONDS = 3_600_000_000

_KEY = ("hour", "account", "project", "key", "model", "tier", "currency", "price_version", "policy")  # of usage_hourly
# Groups of entries travel by COPY (arrays as parameters take ten times as long) and are summed by the database.
_ADDED_COLUMNS = {
    "hour": "timestamptz",
    "month": "text",
    "day": "text",
    "account": "text",
    "project": "text",
    "key": "text",
    "billed": "text",  # the model whose price holds
    "tier": "text",
    "currency": "text",
    "price_version": "bigint",
    "policy": "text",
    "model": "text",  # as the client asked for it
    "requests": "bigint",
    **dict.fromkeys(TOKEN_COLUMNS, "bigint"),
    "compute_seconds": "numeric",
    "cost": "numeric",
}
_ENSURE_ADDED = "CREATE TEMPORARY TABLE IF NOT EXISTS added ({}) ON COMMIT DELETE ROWS".format(
    ", ".join(f"{name} {kind}" for name, kind in _ADDED_COLUMNS.items())
)
_GROUPED = ", ".join("billed" if name == "model" else name for name in _KEY)
_ADD_HOURLY = f"""
    INSERT INTO usage_hourly AS hourly ({", ".join((*_KEY, *ROLLUP_COLUMNS))})
    SELECT {_GROUPED}, {", ".join(f"sum({name})" for name in ROLLUP_COLUMNS)}
    FROM added GROUP BY {_GROUPED} ORDER BY {_GROUPED}
    ON CONFLICT ({", ".join(_KEY)}) DO UPDATE SET
        {", ".join(f"{name} = hourly.{name} + excluded.{name}" for name in ROLLUP_COLUMNS)}
"""
# Every balance that a row of `added` adds to; scopes are those of `ledger.limits.scope`.
_BALANCES = f"""
    LATERAL (SELECT 'a' UNION ALL SELECT 'k:' || key UNION ALL SELECT 'p:' || project WHERE project <> '') AS s (scope),
    LATERAL (SELECT '{ALL_MODELS}' UNION ALL SELECT model WHERE model <> '{ALL_MODELS}') AS m (asked),
    LATERAL (VALUES ('{LIFE}'), (month), (day)) AS p (period)
"""
_ADD_BALANCES = f"""
    INSERT INTO balances AS balance (account, scope, model, period, tokens, requests)
    SELECT account, scope, asked, period, sum({TOTAL_TOKENS}), sum(requests)
    FROM added, {_BALANCES} GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
    ON CONFLICT (account, scope, model, period) DO UPDATE SET
        tokens = balance.tokens + excluded.tokens,
        requests = balance.requests + excluded.requests,
        update_time = now()
    RETURNING account, scope, model, period, tokens
"""
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
"""
_WANTED = f"""
    SELECT DISTINCT account, scope, asked AS model, period
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
        AS holder (month, day, account, project, key, model), {_BALANCES}
"""
_READ_BALANCES = f"""
    SELECT account, scope, model, period, tokens
    FROM balances JOIN ({_WANTED}) AS wanted USING (account, scope, model, period)
"""
_READ_SPENDING = f"""
    SELECT account, scope, model, period, currency, {MILLIONTHS}
    FROM spending JOIN ({_WANTED}) AS wanted USING (account, scope, model, period)
"""


class Balance(NamedTuple):
    """The key of a row of `balances`; `scope` is that of `ledger.limits.scope`."""

    account: str
    scope: str
    model: str  # as asked for; ALL_MODELS
    period: str  # `ledger.periods`: LIFE, "2026-11", "2026-11-21"


@dataclass(slots=True)
class Totals:
    """The totals, after a batch, of every balance that it touched; values only grow."""

    tokens: dict[Balance, int] = field(default_factory=dict)
    cost_millionths: dict[tuple[Balance, str], int] = field(default_factory=dict)  # by currency; half to even

    def __or__(self, later: "Totals") -> "Totals":
        """Both; where both have a balance, the later total."""
        return Totals(self.tokens | later.tokens, self.cost_millionths | later.cost_millionths)

    def used(self) -> Iterator[tuple[Balance, str, int]]:
        """Each total, with its field in a used hash of Valkey."""
        for balance, tokens in self.tokens.items():
            yield balance, TOKEN_BUDGET.field(balance.scope, balance.model), tokens
        for (balance, currency), millionths in self.cost_millionths.items():
            yield balance, COST_BUDGET.field(balance.scope, balance.model, currency), millionths


@dataclass(frozen=True, slots=True)
class Counted:
    """What a batch added, summed: the values of its metrics."""

    requests: int = 0
    tokens: dict[str, int] = field(default_factory=dict)  # by the class's name; every token is in one class
    cost: dict[str, Decimal] = field(default_factory=dict)  # by currency
    unpriced_tokens: int = 0


class _Sum:
    """What one group of entries adds. Tokens are kept as they come and summed once: that takes half the time."""

    __slots__ = ("compute_microseconds", "counts", "requests", "units")

    def __init__(self) -> None:
        self.requests = self.compute_microseconds = self.units = 0
        self.counts: list[tuple[int, ...]] = []

    def tokens(self) -> list[int]:
        """Their sums, as in `usage_columns.TOKEN_CLASSES`."""
        return [sum(counts) for counts in zip(*self.counts, strict=True)]


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
        group.counts.append(entry.tokens)
        group.compute_microseconds += entry.compute_microseconds or 0
        group.units += units

    def counted(self) -> Counted:
        """All groups together."""
        requests = unpriced_tokens = 0
        counts = []
        units: dict[str, int] = defaultdict(int)
        for group, added in self._groups.items():
            currency, policy = group[6], group[8]
            requests += added.requests
            tokens = added.tokens()
            counts.append(tokens)
            if currency:
                units[currency] += added.units
            elif policy != WAIVE:
                unpriced_tokens += total(tokens)
        sums = disjoint([sum(column) for column in zip(*counts, strict=True)]) if counts else []
        by_class = {each.name: count for each, count in zip(TOKEN_CLASSES, sums, strict=bool(sums))}
        return Counted(requests, by_class, {name: amount(units[name]) for name in units}, unpriced_tokens)

    async def write(self, connection: "Connection") -> Totals:
        """Adds everything, each table in the order of its key; the totals that result."""
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
            tokens = "\t".join(map(str, added.tokens()))
            lines.append(
                f"{start}\t{month}\t{day}\t{account}\t{project}\t{key}\t{billed}\t{tier}\t{currency}\t"
                f"{version}\t{policy}\t{model}\t{added.requests}\t{tokens}\t"
                f"{Decimal(added.compute_microseconds).scaleb(-6):f}\t{amount(added.units):f}\n"
            )
        yield "".join(lines).encode()


async def read_totals(connection: "Connection", entries: Iterable[Entry]) -> Totals:
    """The totals of known entries: a duplicate may be delivered because its settlement was interrupted."""
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
    return start.isoformat(), month_name(start), day_name(start)


def _totals(balances: "list[asyncpg.Record]", spending: "list[asyncpg.Record]") -> Totals:
    return Totals(
        {Balance(*row[:4]): row[4] for row in balances},
        {(Balance(*row[:4]), row[4]): row[5] for row in spending},
    )
