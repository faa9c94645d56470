"""The ledger as a self-verifying export: hash chain, rows and signed roots as JSON lines, read in one snapshot."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, TypeAlias

from control.stores.database import Database
from ledger import hash_chain, merkle
from ledger.merkle import Head

if TYPE_CHECKING:
    import asyncpg

    from control.stores.database import Connection

    Record = asyncpg.Record

Line: TypeAlias = dict[str, object]  # what `uplion ledger verify` reads, by its "type"

_EXPORT_SECONDS = 3600.0
_ROWS_AT_ONCE = 1_000
_LINKS = (
    "SELECT account, link, previous, digest, rows, record_time FROM ledger_chain WHERE $1::text IS NULL OR account = $1"
    ' ORDER BY account COLLATE "C", link'
)
_ROWS = (
    f"SELECT {', '.join(hash_chain.COLUMNS)}, link FROM usage_events"
    " WHERE link IS NOT NULL AND ($1::text IS NULL OR account = $1)"
    ' ORDER BY account COLLATE "C", link, request_id COLLATE "C", attempt'
)
_OLDEST_MONTH = """
    SELECT min(to_date(right(relname, 7), 'YYYY_MM')) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'usage_events'::regclass
"""


class LedgerExport(Database):
    """Reads the whole ledger; a call may take minutes."""

    async def keys(self) -> "list[Record]":
        """The keys that signed, newest first."""
        async with self._connection() as connection:
            return await connection.fetch("SELECT * FROM ledger_keys ORDER BY create_time DESC, key_id")

    async def lines(self, account: str | None) -> AsyncIterator[list[Line]]:
        """The lines of the file, some at a time; of one account or of all."""
        async with (
            self._connection(_EXPORT_SECONDS) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield await _head(connection, account)
            async for lines in _chain(connection, account):
                yield lines
            yield await _roots(connection, account)


async def _head(connection: "Connection", account: str | None) -> list[Line]:
    first = await connection.fetchval(
        "SELECT min(record_time) FROM ledger_chain WHERE $1::text IS NULL OR account = $1",
        account,
        timeout=_EXPORT_SECONDS,
    )
    oldest: date | None = await connection.fetchval(_OLDEST_MONTH)
    dropped = first is not None and (oldest is None or first.astimezone(UTC).date() < oldest)
    head = {
        "type": "ledger",
        "version": 1,
        "account": account,
        "columns": hash_chain.COLUMNS,
        "rows_from": str(oldest or datetime.now(UTC).date()) if dropped else None,
        "write_time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    keys = await connection.fetch("SELECT key_id, public_key FROM ledger_keys ORDER BY key_id")
    return [head, *({"type": "key", "id": key["key_id"], "public_key": key["public_key"].hex()} for key in keys)]


async def _chain(connection: "Connection", account: str | None) -> AsyncIterator[list[Line]]:
    """Each link followed by its rows, as the exact texts that were hashed."""
    cursor = await connection.cursor(_ROWS, account, timeout=_EXPORT_SECONDS)
    waiting: list[Record] = []  # rows read, last first
    links = await connection.cursor(_LINKS, account, timeout=_EXPORT_SECONDS)
    while some := await links.fetch(_ROWS_AT_ONCE, timeout=_EXPORT_SECONDS):
        lines: list[Line] = []
        for link in some:
            lines.append(
                {
                    "type": "link",
                    "account": link["account"],
                    "link": link["link"],
                    "previous": link["previous"].hex(),
                    "digest": link["digest"].hex(),
                    "rows": link["rows"],
                    "record_time": link["record_time"].astimezone(UTC).isoformat(timespec="microseconds"),
                }
            )
            while True:
                if not waiting:
                    waiting = list(reversed(await cursor.fetch(_ROWS_AT_ONCE, timeout=_EXPORT_SECONDS)))
                if not waiting or (waiting[-1]["account"], waiting[-1]["link"]) > (link["account"], link["link"]):
                    break
                lines.append(_row(waiting.pop()))
            if len(lines) >= _ROWS_AT_ONCE:
                yield lines
                lines = []
        yield lines


def _row(row: "Record") -> Line:
    text = hash_chain.row(*(row[name] for name in hash_chain.COLUMNS))
    return {"type": "row", "account": row["account"], "link": row["link"], "values": text.split("\0")[:-1]}


async def _roots(connection: "Connection", account: str | None) -> list[Line]:
    """Every root; of one account also the Merkle path from its head to the newest root of each month."""
    rows = await connection.fetch("SELECT * FROM ledger_roots ORDER BY day")
    lines = []
    for number, row in enumerate(rows):
        line = {
            "type": "root",
            "day": str(row["day"]),
            "root": row["root"].hex(),
            "accounts": row["accounts"],
            "previous": row["previous"].hex(),
            "signature": row["signature"].hex(),
            "key": row["key_id"],
        }
        newest = number + 1 == len(rows) or rows[number + 1]["day"].month != row["day"].month
        if account is not None and newest:
            end = datetime.combine(row["day"] + timedelta(days=1), time(), UTC)
            heads = await connection.fetch(merkle.HEADS, end, timeout=_EXPORT_SECONDS)
            line["proof"] = await asyncio.to_thread(_proof, [Head(*head) for head in heads], account)
        lines.append(line)
    return lines


def _proof(heads: Sequence[Head], account: str) -> Line | None:
    """None when the account's chain had not begun."""
    index = next((index for index, head in enumerate(heads) if head.account == account), None)
    if index is None:
        return None
    steps = merkle.path([merkle.leaf(head) for head in heads], index)
    return {
        "link": heads[index].link,
        "digest": heads[index].digest.hex(),
        "path": [[side, other.hex()] for side, other in steps],
    }


def write(lines: Sequence[Line]) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines).encode()
