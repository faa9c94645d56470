"""The ledger in Postgres: a batch is one transaction, and whatever happens to it, every event counts exactly once.

Many billing processes write side by side. Every one takes its row locks in the same order (ledger rows by request id,
then rollups, balances and spending, each sorted), so none can wait for another in a circle.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import asyncpg

from billing.entry import Entry
from billing.pricing import Charge, Price, PriceList, amount
from billing.slicing import slices

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

SCHEMA_VERSION = 2  # the oldest schema this module works with
ACCOUNT_TOTAL = ""  # the `key` of an account's own row in balances and spending

_COLUMNS = {
    "request_id": "text",
    "attempt": "integer",
    "month": "date",
    "account": "text",
    "key": "text",
    "model": "text",
    "model_served": "text",
    "model_revision": "bigint",
    "provider": "text",
    "lane": "text",
    "tier": "text",
    "operation": "text",
    "status": "text",
    "finish_reason": "text",
    "error_reason": "text",
    "input_tokens": "bigint",
    "cached_tokens": "bigint",
    "output_tokens": "bigint",
    "reasoning_tokens": "bigint",
    "queue_seconds": "double precision",
    "first_token_seconds": "double precision",
    "duration_seconds": "double precision",
    "end_time": "timestamptz",
    "last": "boolean",
    "reservation": "text",
    "price_version": "bigint",
    "cost": "numeric",
    "currency": "text",
}
_UNPRICED = (None, None, None)
_NAMES = ", ".join(_COLUMNS)

# COPY takes 10 us of our CPU for a row, parameters take 30. The table is the connection's own and empties itself.
_ENSURE_INCOMING = (
    f"CREATE TEMPORARY TABLE IF NOT EXISTS incoming ({', '.join(f'{name} {kind}' for name, kind in _COLUMNS.items())})"
    " ON COMMIT DELETE ROWS"
)
# The rows lie there, and so are inserted, in the order they were copied in.
_INSERT_EVENTS = (
    f"INSERT INTO usage_events ({_NAMES}) SELECT {_NAMES} FROM incoming"  # noqa: S608  # our own names
    " ON CONFLICT DO NOTHING RETURNING request_id, attempt"
)
_ADD_HOURLY = """
    INSERT INTO usage_hourly AS hourly (hour, account, key, model, currency, requests, input_tokens, cached_tokens,
                                        output_tokens, reasoning_tokens, cost)
    SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
                         $8::bigint[], $9::bigint[], $10::bigint[], $11::numeric[])
    ON CONFLICT (hour, account, key, model, currency) DO UPDATE SET
        requests = hourly.requests + excluded.requests,
        input_tokens = hourly.input_tokens + excluded.input_tokens,
        cached_tokens = hourly.cached_tokens + excluded.cached_tokens,
        output_tokens = hourly.output_tokens + excluded.output_tokens,
        reasoning_tokens = hourly.reasoning_tokens + excluded.reasoning_tokens,
        cost = hourly.cost + excluded.cost
"""
_ADD_BALANCES = """
    INSERT INTO balances AS balance (account, key, tokens, requests)
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[])
    ON CONFLICT (account, key) DO UPDATE SET
        tokens = balance.tokens + excluded.tokens,
        requests = balance.requests + excluded.requests,
        update_time = now()
"""
_ADD_SPENDING = """
    INSERT INTO spending AS spent (account, key, currency, cost)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::numeric[])
    ON CONFLICT (account, key, currency) DO UPDATE SET cost = spent.cost + excluded.cost
"""
_TOTALS = """
    SELECT account, key, tokens FROM balances
    JOIN unnest($1::text[], $2::text[]) AS wanted (account, key) USING (account, key)
"""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a committed batch did."""

    new: int
    duplicates: int
    unpriced: int
    totals: dict[tuple[str, str], int]  # (account, key or ACCOUNT_TOTAL) -> lifetime tokens, for every one in the batch


class Ledger:
    """Writes batches. One object may serve several batches at once."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._months: set[date] = set()  # whose partitions are known to exist
        self._prices = PriceList(())
        self._prices_seen: tuple[Any, ...] = ()

    async def record(self, entries: Iterable[Entry]) -> Recorded:
        """Commits what is new among the entries; when it returns, all of them are in the ledger."""
        batch: dict[tuple[str, int], Entry] = {}
        delivered = 0
        for entry in entries:
            delivered += 1
            batch.setdefault(entry[:2], entry)
        await self._ensure_partitions({entry.month for entry in batch.values()})
        charges: dict[tuple[str, int], Charge | None] = {}
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                prices = await self._current_prices(connection)
                await connection.execute(_ENSURE_INCOMING)
                async for keys in slices(sorted(batch)):
                    charges |= {key: prices.charge(batch[key]) for key in keys}
                    rows = [_row(batch[key], charges[key]) for key in keys]
                    await connection.copy_records_to_table("incoming", records=rows, columns=list(_COLUMNS))
                fresh = [(row[0], row[1]) for row in await connection.fetch(_INSERT_EVENTS)]
                sums = _Sums()
                async for keys in slices(fresh):
                    for key in keys:
                        sums.add(batch[key], charges[key])
                await sums.write(connection)
                totals = await _read_totals(connection, batch.values())
        except asyncpg.CheckViolationError:  # a month was dropped behind our back: look again at the next try
            self._months.clear()
            raise
        unpriced = sum(charges[key] is None for key in fresh)
        return Recorded(len(fresh), delivered - len(fresh), unpriced, totals)

    async def _ensure_partitions(self, months: set[date]) -> None:
        for month in sorted(months - self._months):
            await self._pool.execute("SELECT ensure_usage_partition($1)", month)
            self._months.add(month)

    async def _current_prices(self, connection: "Connection") -> PriceList:
        """Read again only when a version was added: rows are never changed."""
        seen = tuple(await connection.fetchrow("SELECT count(*), max(version) FROM prices") or ())
        if seen != self._prices_seen:
            rows = await connection.fetch(
                "SELECT version, model, effective_from, currency, input_per_million_tokens, cached_per_million_tokens,"
                " output_per_million_tokens, per_request FROM prices"
            )
            self._prices = PriceList(Price(*row) for row in rows)
            self._prices_seen = seen
        return self._prices


def _row(entry: Entry, charge: Charge | None) -> tuple[Any, ...]:
    return entry[:-1] + ((charge.price_version, amount(charge.units), charge.currency) if charge else _UNPRICED)


class _Sums:
    """What new entries add to rollups, balances and spending."""

    def __init__(self) -> None:
        # (hour, account, key, model, currency) -> requests, input, cached, output and reasoning tokens, cost in units
        self._groups: dict[tuple[datetime, str, str, str, str], list[int]] = defaultdict(lambda: [0] * 6)

    def add(self, entry: Entry, charge: Charge | None) -> None:
        currency, units = (charge.currency, charge.units) if charge else ("", 0)
        group = self._groups[entry.hour, entry.account, entry.key, entry.billed_model, currency]
        group[0] += entry.last  # an attempt that another one follows is not another request
        group[1] += entry.input_tokens
        group[2] += entry.cached_tokens
        group[3] += entry.output_tokens
        group[4] += entry.reasoning_tokens
        group[5] += units

    async def write(self, connection: "Connection") -> None:
        """Adds everything, in sorted order."""
        if not self._groups:
            return
        balances: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * 2)
        spending: dict[tuple[str, str, str], int] = defaultdict(int)
        hourly = []
        for group in sorted(self._groups):
            _, account, key, _, currency = group
            requests, input_tokens, cached_tokens, output_tokens, reasoning_tokens, units = self._groups[group]
            tokens = (requests, input_tokens, cached_tokens, output_tokens, reasoning_tokens)
            hourly.append((*group, *tokens, amount(units)))
            for holder in (key, ACCOUNT_TOTAL):
                balances[account, holder][0] += input_tokens + output_tokens
                balances[account, holder][1] += requests
                if currency:
                    spending[account, holder, currency] += units
        await connection.execute(_ADD_HOURLY, *zip(*hourly, strict=True))
        balance_rows = [(*holder, *balances[holder]) for holder in sorted(balances)]
        await connection.execute(_ADD_BALANCES, *zip(*balance_rows, strict=True))
        if spending:
            spending_rows = [(*holder, amount(spending[holder])) for holder in sorted(spending)]
            await connection.execute(_ADD_SPENDING, *zip(*spending_rows, strict=True))


async def _read_totals(connection: "Connection", entries: Iterable[Entry]) -> dict[tuple[str, str], int]:
    """Also of what brought nothing new: a duplicate may come because its settlement was interrupted."""
    wanted = sorted({(entry.account, key) for entry in entries for key in (entry.key, ACCOUNT_TOTAL)})
    rows = await connection.fetch(_TOTALS, *zip(*wanted, strict=True))
    return {(row["account"], row["key"]): row["tokens"] for row in rows}
