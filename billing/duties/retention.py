"""Retention: drops usage events after some months, and balances of past days and months. Rollups stay."""

import logging
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg

from ledger.periods import day_name, month_name

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
# Rows that a batch has locked are left for the next run, so that no deadlock can arise.
_FORGET = """
    DELETE FROM {table} WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM {table}
        WHERE length(period) = 10 AND period < $1 OR length(period) = 7 AND period < $2
        FOR UPDATE SKIP LOCKED
    ))
"""


def oldest_month(now_seconds: float, months: int) -> date:
    """The first month whose events the ledger still accepts."""
    now = datetime.fromtimestamp(now_seconds, UTC)
    count = max(1, now.year * 12 + now.month - 1 - months)
    return date(max(1, count // 12), count % 12 + 1, 1)


async def forget(pool: "Pool", months: int, now_seconds: float) -> None:
    """Drops months of usage events, and deletes balances and spending of past periods.

    A month is dropped one month after it was closed to new events: no process' clock is wrong by so much.
    """
    for name in [row["relname"] for row in await pool.fetch(_PARTITIONS, oldest_month(now_seconds, months + 1))]:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '3s'")  # every batch waits for this lock
            await connection.execute(f'DROP TABLE IF EXISTS "{name}"')
        logger.info("month of usage events dropped", extra={"partition": name})
    now = datetime.fromtimestamp(now_seconds, UTC)
    day, month = day_name(now - timedelta(days=_DAYS_OF_DAYS)), month_name(now - timedelta(days=_DAYS_OF_MONTHS))
    for table in ("balances", "spending"):
        await pool.execute(_FORGET.format(table=table), day, month)
