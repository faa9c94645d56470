"""What the ledger forgets: usage events after some months, balances of days and months long past. Rollups stay."""

import logging
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg

from billing.rollups import periods

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]

logger = logging.getLogger(__name__)

EVERY_SECONDS = 3600.0
_DAYS_OF_DAYS = 40
_DAYS_OF_MONTHS = 400
_PARTITIONS = """
    SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'usage_events'::regclass AND relname < 'usage_events_' || to_char($1::date, 'YYYY_MM')
    ORDER BY relname
"""
# Rows that a batch holds at this moment are left for the next hour, so that nobody waits in a circle.
_FORGET = """
    DELETE FROM {table} WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM {table}
        WHERE length(period) = 10 AND period < $1 OR length(period) = 7 AND period < $2
        FOR UPDATE SKIP LOCKED
    ))
"""


def oldest_month(now_seconds: float, months: int) -> date:
    """The first month whose events the ledger still takes."""
    now = datetime.fromtimestamp(now_seconds, UTC)
    count = max(1, now.year * 12 + now.month - 1 - months)
    return date(max(1, count // 12), count % 12 + 1, 1)


async def forget(pool: "Pool", months: int, now_seconds: float) -> None:
    """Drops months of usage events, and deletes balances and spending of past periods.

    A month goes one month after it was closed to new events: no other process' clock is off by so much.
    """
    for name in [row["relname"] for row in await pool.fetch(_PARTITIONS, oldest_month(now_seconds, months + 1))]:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '3s'")  # every batch waits behind this one
            await connection.execute(f'DROP TABLE IF EXISTS "{name}"')
        logger.info("month of usage events dropped", extra={"partition": name})
    now = datetime.fromtimestamp(now_seconds, UTC)
    day, month = periods(now - timedelta(days=_DAYS_OF_DAYS))[2], periods(now - timedelta(days=_DAYS_OF_MONTHS))[1]
    for table in ("balances", "spending"):
        await pool.execute(_FORGET.format(table=table), day, month)
