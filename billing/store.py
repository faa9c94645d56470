"""The ledger's writer: a batch is one transaction, and every event is counted exactly once.

Many billing processes write side by side. Each takes its row locks in the same order (the heads of the accounts' hash
chains, ledger rows by request id, then rollups, balances and spending, each sorted), so that no deadlock can arise.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from billing import copy_rows, policy
from billing.cooperative import chunks
from billing.entry import Entry
from billing.policy import BILL, Action
from billing.pricing import Charge, Price, PriceList
from billing.rollups import Counted, Sums, Totals, read_totals
from ledger import hash_chain, prices, usage_columns

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

SCHEMA_VERSION = max(11, usage_columns.SCHEMA_VERSION)  # the oldest schema that billing works with

_PRICES = f"SELECT version, model, effective_from, currency, {', '.join(prices.RATES)} FROM prices"
_KNOWN = "SELECT request_id, attempt FROM usage_events WHERE month = $1 AND request_id = ANY($2::text[])"
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
_Heads = dict[str, tuple[int, bytes]]  # by account: its last link and that link's digest


class _Row(NamedTuple):
    """A row that is new to the ledger, unless it turns out to be a duplicate."""

    entry: Entry
    charge: Charge | None
    action: Action
    chained: str  # the text that the hash chain covers
    line: str  # for COPY, without its link

    @property
    def key(self) -> _Key:
        return self.entry[:2]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a committed batch did."""

    new: int
    duplicates: int
    unpriced: int  # of the new ones: with usage, and without a price
    totals: Totals  # of all balances that the batch touched, duplicates included
    counted: Counted  # of the new ones


class LedgerWriter:
    """Writes batches; one object may write several at once."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._months: set[str] = set()  # whose partitions exist
        self._prices = PriceList(())
        self._prices_seen: tuple[object, ...] = ()

    async def record(self, entries: Iterable[Entry]) -> Recorded:
        """Commits the entries that are new. When it returns, all of them are in the ledger."""
        batch: dict[_Key, Entry] = {}
        delivered = 0
        for entry in entries:
            delivered += 1
            key = entry[:2]
            known = batch.get(key)
            # A worker's measurement is better than a router's count.
            if known is None or (entry.by_worker and not known.by_worker):
                batch[key] = entry
        await self._ensure_partitions({entry.month for entry in batch.values()})
        try:
            async with self._pool.acquire() as connection:
                rows = await self._prepare(connection, batch)
                sums = await _sum(rows)
                async with connection.transaction():
                    return await self._record(connection, rows, sums, delivered)
        except asyncpg.CheckViolationError:  # a month was dropped meanwhile: its partition is ensured by the retry
            self._months.clear()
            raise

    async def _prepare(self, connection: "Connection", batch: dict[_Key, Entry]) -> list[_Row]:
        """Everything that needs no locks; rows in the order of the hash chain."""
        price_list = await self._current_prices(connection)
        actions = await _actions(connection, batch)
        rows: list[_Row] = []
        async for keys in chunks(sorted(batch)):
            for key in keys:
                entry, action = batch[key], actions.get(key, BILL)
                charge = price_list.charge(entry, action)
                rows.append(_Row(entry, charge, action, *copy_rows.copy_row(entry, charge, action)))
        return rows

    async def _record(self, connection: "Connection", rows: list[_Row], sums: Sums, delivered: int) -> Recorded:
        heads = await _lock_heads(connection, sorted({row.entry.account for row in rows}))
        fresh = await _insert(connection, rows, heads)
        if len(fresh) < len(rows):
            sums = await _sum(fresh)
        if fresh:
            await _add_links(connection, heads, fresh)
        totals = await sums.write(connection)
        if len(fresh) < delivered:
            known = await read_totals(connection, [row.entry for row in rows])
            totals = known | totals
        unpriced = sum(row.charge is None and any(row.entry.tokens) for row in fresh)
        return Recorded(len(fresh), delivered - len(fresh), unpriced, totals, sums.counted())

    async def _ensure_partitions(self, months: set[str]) -> None:
        for month in sorted(months - self._months):
            await self._pool.execute("SELECT ensure_usage_partition($1)", date.fromisoformat(month))
            self._months.add(month)

    async def _current_prices(self, connection: "Connection") -> PriceList:
        """Reads prices again only when a version was added, since versions never change."""
        seen = tuple(await connection.fetchrow("SELECT count(*), max(version) FROM prices") or ())
        if seen != self._prices_seen:
            rows = await connection.fetch(_PRICES)
            self._prices = PriceList(
                Price(row["version"], row["model"], row["effective_from"], row["currency"], row) for row in rows
            )
            self._prices_seen = seen
        return self._prices


async def _actions(connection: "Connection", batch: dict[_Key, Entry]) -> dict[_Key, Action]:
    """What is charged for the entries that ended abnormally."""
    ends = {key: end for key, entry in batch.items() if (end := policy.abnormal_end(entry))}
    if not ends:
        return {}
    rows = await connection.fetch(
        "SELECT id, billing_policy FROM accounts WHERE id = ANY($1::text[]) AND billing_policy <> '{}'",
        list({batch[key].account for key in ends}),
    )
    own = {row["id"]: policy.parse(row["billing_policy"]) for row in rows}
    return {key: policy.action(end, own.get(batch[key].account, {})) for key, end in ends.items()}


async def _sum(rows: list[_Row]) -> Sums:
    sums = Sums()
    async for part in chunks(rows):
        for row in part:
            sums.add(row.entry, row.charge, row.action)
    return sums


async def _lock_heads(connection: "Connection", accounts: list[str]) -> _Heads:
    """The last link and digest of each account, locked, so that batches of one account are serialised."""
    await connection.execute(_ENSURE_HEADS, accounts)
    return {row[0]: (row[1], row[2]) for row in await connection.fetch(_LOCK_HEADS, accounts)}


async def _insert(connection: "Connection", rows: list[_Row], heads: _Heads) -> list[_Row]:
    """Inserts the rows that are new, and returns them.

    COPY goes straight into the ledger, because duplicates are rare: a temporary table and ON CONFLICT take twice the
    time. A duplicate fails the COPY by its unique key, and the next attempt leaves out the rows that are known.
    """
    known: set[_Key] = set()
    while fresh := [row for row in rows if row.key not in known] if known else rows:
        try:
            async with connection.transaction():
                await connection.copy_to_table(
                    "usage_events", source=_lines(fresh, heads), columns=list(copy_rows.COLUMNS)
                )
            break
        except asyncpg.UniqueViolationError:
            found = await _known(connection, fresh)
            if not found:
                raise
            known |= found
    return fresh


async def _lines(rows: list[_Row], heads: _Heads) -> AsyncIterator[bytes]:
    async for part in chunks(rows):
        yield "".join([f"{row.line}\t{heads[row.entry.account][0] + 1}\n" for row in part]).encode()


async def _known(connection: "Connection", rows: list[_Row]) -> set[_Key]:
    """The keys of the rows that the ledger holds."""
    months: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        months[row.entry.month].append(row.entry.request_id)
    return {
        (found["request_id"], found["attempt"])
        for month, request_ids in months.items()
        for found in await connection.fetch(_KNOWN, date.fromisoformat(month), request_ids)
    }


async def _add_links(connection: "Connection", heads: _Heads, rows: list[_Row]) -> None:
    chained: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        chained[row.entry.account].append(row.chained)
    links = []
    for account, texts in chained.items():
        link, previous = heads[account]
        links.append((account, link + 1, previous, hash_chain.digest(previous, texts), len(texts)))
    await connection.execute(_ADD_LINKS, *zip(*links, strict=True))
