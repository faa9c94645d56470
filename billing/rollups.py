"""What a batch adds to hourly rollups, balances and spending, and the totals that it leads to."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from billing.entry import Entry
from billing.policy import Action
from billing.pricing import Charge, amount, millionths
from common.limits import scope

if TYPE_CHECKING:
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

LIFE = "life"
ALL_MODELS = ""

_ADD_HOURLY = """
    INSERT INTO usage_hourly AS hourly (hour, account, project, key, model, tier, currency, price_version, policy,
        requests, input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, compute_seconds,
        cost)
    SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
        $8::bigint[], $9::text[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[],
        $15::bigint[], $16::numeric[], $17::numeric[])
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
_ADD_BALANCES = """
    INSERT INTO balances AS balance (account, scope, model, period, tokens, requests)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])
    ON CONFLICT (account, scope, model, period) DO UPDATE SET
        tokens = balance.tokens + excluded.tokens,
        requests = balance.requests + excluded.requests,
        update_time = now()
    RETURNING account, scope, model, period, tokens
"""
_ADD_SPENDING = """
    INSERT INTO spending AS spent (account, scope, model, period, currency, cost)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::numeric[])
    ON CONFLICT (account, scope, model, period, currency) DO UPDATE SET cost = spent.cost + excluded.cost
    RETURNING account, scope, model, period, currency, cost
"""
_WANTED = "unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS wanted (account, scope, model, period)"
_READ_BALANCES = f"""
    SELECT account, scope, model, period, tokens
    FROM balances JOIN {_WANTED} USING (account, scope, model, period)
"""  # noqa: S608  # our own text
_READ_SPENDING = f"""
    SELECT account, scope, model, period, currency, cost
    FROM spending JOIN {_WANTED} USING (account, scope, model, period)
"""  # noqa: S608  # our own text


class Balance(NamedTuple):
    """What is counted on: a row of `balances`. `scope` as `common.limits.scope` writes it."""

    account: str
    scope: str
    model: str  # as asked for; ALL_MODELS
    period: str  # LIFE, "2026-11", "2026-11-21"


@dataclass(slots=True)
class Totals:
    """Where everything that a batch touched stands after it; values only ever grow."""

    tokens: dict[Balance, int] = field(default_factory=dict)
    cost_millionths: dict[tuple[Balance, str], int] = field(default_factory=dict)  # by balance and currency


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


_Group = tuple[datetime, str, str, str, str, str, str, int, str, str]


class Sums:
    """What new entries add."""

    def __init__(self) -> None:
        # (hour, account, project, key, model that is billed, tier, currency, price version, policy, model asked for)
        self._groups: dict[_Group, _Sum] = defaultdict(_Sum)

    def add(self, entry: Entry, charge: Charge | None, action: Action) -> None:
        """Counts one entry; without a charge its currency is ''."""
        version, units, currency = charge or (0, 0, "")
        group = self._groups[
            entry.hour,
            entry.account,
            entry.project,
            entry.key,
            entry.billed_model,
            entry.tier,
            currency,
            version,
            action.value,
            entry.model,
        ]
        group.requests += entry.last  # an attempt that another one follows is not another request
        group.input += entry.input_tokens
        group.cached += entry.cached_tokens
        group.cache_write += entry.cache_write_tokens
        group.output += entry.output_tokens
        group.reasoning += entry.reasoning_tokens
        if entry.compute_seconds:
            group.compute += round(entry.compute_seconds * 1e6)
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
            elif policy != Action.WAIVE.value:
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
        totals = Totals()
        if not self._groups:
            return totals
        hourly: dict[tuple[object, ...], _Sum] = defaultdict(_Sum)
        balances: dict[Balance, list[int]] = defaultdict(lambda: [0, 0])
        spending: dict[tuple[Balance, str], int] = defaultdict(int)
        for group, added in self._groups.items():
            hour, account, project, key, _, _, currency, _, _, model = group
            hourly[group[:-1]].add(added)
            for balance in _balances(hour, account, project, key, model):
                counts = balances[balance]
                counts[0] += added.input + added.output
                counts[1] += added.requests
                if currency:
                    spending[balance, currency] += added.units
        await connection.execute(_ADD_HOURLY, *_transposed((*key, *_hourly(hourly[key])) for key in sorted(hourly)))
        rows = await connection.fetch(_ADD_BALANCES, *_transposed((*key, *balances[key]) for key in sorted(balances)))
        totals.tokens = {Balance(*row[:4]): row[4] for row in rows}
        if spending:
            rows = await connection.fetch(
                _ADD_SPENDING, *_transposed((*key[0], key[1], amount(spending[key])) for key in sorted(spending))
            )
            totals.cost_millionths = {(Balance(*row[:4]), row[4]): millionths(row[5]) for row in rows}
        return totals


async def read_totals(connection: "Connection", entries: Iterable[Entry]) -> Totals:
    """Of what brought nothing new: a duplicate may come because its settlement was interrupted."""
    wanted = {
        balance
        for holder in {(entry.hour, entry.account, entry.project, entry.key, entry.model) for entry in entries}
        for balance in _balances(*holder)
    }
    columns = _transposed(wanted)
    return Totals(
        {Balance(*row[:4]): row[4] for row in await connection.fetch(_READ_BALANCES, *columns)},
        {(Balance(*row[:4]), row[4]): millionths(row[5]) for row in await connection.fetch(_READ_SPENDING, *columns)},
    )


def periods(moment: datetime) -> tuple[str, str, str]:
    """The periods that a moment (UTC) counts in."""
    return LIFE, f"{moment:%Y-%m}", f"{moment:%Y-%m-%d}"


def _balances(hour: datetime, account: str, project: str, key: str, model: str) -> Iterator[Balance]:
    scopes = [scope("account", account), scope("key", key)]
    if project:
        scopes.append(scope("project", project))
    for period in periods(hour):
        for where in scopes:
            yield Balance(account, where, ALL_MODELS, period)
            if model != ALL_MODELS:  # a request that named none
                yield Balance(account, where, model, period)


def _hourly(added: _Sum) -> tuple[int | Decimal, ...]:
    return (
        added.requests,
        added.input,
        added.cached,
        added.cache_write,
        added.output,
        added.reasoning,
        Decimal(added.compute).scaleb(-6),
        amount(added.units),
    )


def _transposed(rows: Iterable[Iterable[object]]) -> list[tuple[object, ...]]:
    """Rows as the columns that unnest() takes."""
    return list(zip(*rows, strict=True))
