"""The ledger in Postgres: a batch is one transaction, and whatever happens to it, every event counts exactly once.

Many billing processes write side by side. Every one takes its row locks in the same order (the heads of the accounts'
hash chains, ledger rows by request id, then rollups, balances and spending, each sorted), so none can wait for another
in a circle.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import asyncpg

from billing import policy
from billing.entry import Entry
from billing.policy import Action
from billing.pricing import Charge, Price, PriceList, amount
from billing.rollups import Counted, Sums, Totals, read_totals
from billing.slicing import slices
from common import ledger

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

SCHEMA_VERSION = 7  # the oldest schema this module works with

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
    "project": "text",
    "cache_write_tokens": "bigint",
    "compute_seconds": "double precision",
    "price_version": "bigint",
    "cost": "numeric",
    "currency": "text",
    "policy": "text",
    "link": "bigint",
}
_NAMES = ", ".join(_COLUMNS)
_PRICE_COLUMNS = (
    "version, model, effective_from, currency, input_per_million_tokens, cached_per_million_tokens,"
    " output_per_million_tokens, per_request, cache_write_per_million_tokens, reasoning_per_million_tokens,"
    " per_gpu_second"
)

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
_ENSURE_HEADS = "INSERT INTO ledger_heads (account) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING"
_LOCK_HEADS = (
    "SELECT account, link, digest FROM ledger_heads WHERE account = ANY($1::text[])"
    ' ORDER BY account COLLATE "C" FOR UPDATE'
)
_ADD_LINKS = """
    WITH links AS (
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::bytea[], $5::integer[])
            AS link (account, link, previous, digest, rows)
    ), moved AS (
        UPDATE ledger_heads SET link = links.link, digest = links.digest
        FROM links WHERE ledger_heads.account = links.account
    )
    INSERT INTO ledger_chain (account, link, previous, digest, rows) SELECT * FROM links
"""

_Key = tuple[str, int]  # request id, attempt


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a committed batch did."""

    new: int
    duplicates: int
    unpriced: int  # of the new ones: used something, and nobody knows what it costs
    totals: Totals  # of everything the batch touched, duplicates included
    counted: Counted  # of the new ones


class Ledger:
    """Writes batches. One object may serve several batches at once."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._months: set[date] = set()  # whose partitions are known to exist
        self._prices = PriceList(())
        self._prices_seen: tuple[Any, ...] = ()

    async def record(self, entries: Iterable[Entry]) -> Recorded:
        """Commits what is new among the entries; when it returns, all of them are in the ledger."""
        batch: dict[_Key, Entry] = {}
        delivered = 0
        for entry in entries:
            delivered += 1
            known = batch.setdefault(entry[:2], entry)
            if entry.by_worker and not known.by_worker:  # what a worker measured is better than what a router saw
                batch[entry[:2]] = entry
        await self._ensure_partitions({entry.month for entry in batch.values()})
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                return await self._record(connection, batch, delivered)
        except asyncpg.CheckViolationError:  # a month was dropped behind our back: look again at the next try
            self._months.clear()
            raise

    async def _record(self, connection: "Connection", batch: dict[_Key, Entry], delivered: int) -> Recorded:
        prices = await self._current_prices(connection)
        actions = await _actions(connection, batch)
        heads = await _lock_heads(connection, sorted({entry.account for entry in batch.values()}))
        await connection.execute(_ENSURE_INCOMING)
        charges: dict[_Key, Charge | None] = {}
        rows: dict[_Key, tuple[Any, ...]] = {}
        async for keys in slices(sorted(batch)):
            for key in keys:
                entry, action = batch[key], actions.get(key, Action.BILL)
                charge = charges[key] = prices.charge(entry, action)
                rows[key] = _row(entry, charge, action, heads[entry.account][0] + 1)
            await connection.copy_records_to_table(
                "incoming", records=[rows[key] for key in keys], columns=list(_COLUMNS)
            )
        fresh = [(row[0], row[1]) for row in await connection.fetch(_INSERT_EVENTS)]
        sums, unpriced = Sums(), 0
        links: dict[str, list[str]] = defaultdict(list)  # the canonical rows of each account
        async for keys in slices(sorted(fresh)):
            for key in keys:
                entry, charge = batch[key], charges[key]
                sums.add(entry, charge, actions.get(key, Action.BILL))
                links[entry.account].append(_canonical(rows[key]))
                unpriced += charge is None and bool(entry.input_tokens or entry.output_tokens)
        if links:
            await _add_links(connection, heads, links)
        totals = await sums.write(connection)
        if len(fresh) < delivered:
            known = await read_totals(connection, batch.values())
            totals = Totals(known.tokens | totals.tokens, known.cost_millionths | totals.cost_millionths)
        return Recorded(len(fresh), delivered - len(fresh), unpriced, totals, sums.counted())

    async def _ensure_partitions(self, months: set[date]) -> None:
        for month in sorted(months - self._months):
            await self._pool.execute("SELECT ensure_usage_partition($1)", month)
            self._months.add(month)

    async def _current_prices(self, connection: "Connection") -> PriceList:
        """Read again only when a version was added: rows are never changed."""
        seen = tuple(await connection.fetchrow("SELECT count(*), max(version) FROM prices") or ())
        if seen != self._prices_seen:
            rows = await connection.fetch(f"SELECT {_PRICE_COLUMNS} FROM prices")  # noqa: S608  # our own names
            self._prices = PriceList(Price(*row) for row in rows)
            self._prices_seen = seen
        return self._prices


async def _actions(connection: "Connection", batch: dict[_Key, Entry]) -> dict[_Key, Action]:
    """What the policies say of those that ended abnormally."""
    ends = {key: end for key, entry in batch.items() if (end := policy.abnormal_end(entry))}
    if not ends:
        return {}
    rows = await connection.fetch(
        "SELECT id, billing_policy FROM accounts WHERE id = ANY($1::text[]) AND billing_policy <> '{}'",
        list({batch[key].account for key in ends}),
    )
    own = {row["id"]: policy.parse(row["billing_policy"]) for row in rows}
    return {key: policy.action(end, own.get(batch[key].account, {})) for key, end in ends.items()}


async def _lock_heads(connection: "Connection", accounts: list[str]) -> dict[str, tuple[int, bytes]]:
    """The last link and digest of each account, locked: batches of one account follow each other."""
    await connection.execute(_ENSURE_HEADS, accounts)
    return {row[0]: (row[1], row[2]) for row in await connection.fetch(_LOCK_HEADS, accounts)}


async def _add_links(
    connection: "Connection", heads: dict[str, tuple[int, bytes]], links: dict[str, list[str]]
) -> None:
    rows = []
    for account, texts in links.items():
        link, previous = heads[account]
        rows.append((account, link + 1, previous, ledger.digest(previous, texts), len(texts)))
    await connection.execute(_ADD_LINKS, *zip(*rows, strict=True))


def _row(entry: Entry, charge: Charge | None, action: Action, link: int) -> tuple[Any, ...]:
    price = (charge.price_version, amount(charge.units), charge.currency) if charge else (None, None, None)
    return (*entry[:-2], *price, action.value, link)


_CANONICAL = [list(_COLUMNS).index(name) for name in ledger.COLUMNS]


def _canonical(row: tuple[Any, ...]) -> str:
    return ledger.row(*(row[position] for position in _CANONICAL))
