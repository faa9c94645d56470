"""Attempts of single requests, from the ledger in Postgres."""

from typing import TYPE_CHECKING

from control.stores.database import Database
from ledger.usage_columns import DURATIONS, TOKEN_COLUMNS

if TYPE_CHECKING:
    import asyncpg

    Record = asyncpg.Record

_COLUMNS = (
    *("attempt", "account", "project", "key", "model", "model_served", "provider", "tier", "operation", "status"),
    *("finish_reason", "error_reason", *TOKEN_COLUMNS, *(each.column for each in DURATIONS), "end_time"),
    *("price_version", "cost", "currency", "policy"),
)
_OF_REQUEST = f"SELECT {', '.join(_COLUMNS)} FROM usage_events WHERE request_id = $1 ORDER BY attempt, month"


class AttemptStore(Database):
    """Every query has a deadline."""

    async def of_request(self, request_id: str) -> "list[Record]":
        """All attempts of a request, oldest first, from every month's partition by primary key."""
        async with self._connection() as connection:
            return await connection.fetch(
                _OF_REQUEST,
                request_id,
            )
