"""Alerts that billing wrote to Postgres."""

from typing import TYPE_CHECKING

from control.stores.database import Database

if TYPE_CHECKING:
    import asyncpg

    Record = asyncpg.Record


class AlertStore(Database):
    """Every query has a deadline."""

    async def page(self, account: str | None, count: int, before: int | None) -> "list[Record]":
        """Newest first; of one account, or of all and the platform."""
        async with self._connection() as connection:
            return await connection.fetch(
                "SELECT * FROM alerts WHERE ($1::text IS NULL OR account = $1) AND ($2::bigint IS NULL OR id < $2)"
                " ORDER BY id DESC LIMIT $3",
                account,
                before,
                count,
            )
