"""Accounts in Postgres."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from control.requests.paging import Position
from control.stores.database import Database, assignments, found

if TYPE_CHECKING:
    import asyncpg

    Record = asyncpg.Record

_ACCOUNT = "id, name, labels, state, limits, create_time, erase_time"


class AccountStore(Database):
    """Every query has a deadline; a constraint that is violated is raised as the error for the client.

    Reads and changes of one object take the account that it must belong to, None being any: outside of it, it is not
    found. `changes` are columns and their new values.
    """

    async def create(self, identifier: str, name: str, labels: str, limits: str, request_id: str | None) -> "Record":
        """The new account; for a repeated request id, the one it made the first time."""
        async with self._connection() as connection:
            row = await connection.fetchrow(
                "INSERT INTO accounts (id, name, labels, limits, request_id) VALUES ($1, $2, $3, $4, $5)"
                f" ON CONFLICT (request_id) DO NOTHING RETURNING {_ACCOUNT}",
                identifier,
                name,
                labels,
                limits,
                request_id,
            )
            if row is None:
                row = await connection.fetchrow(f"SELECT {_ACCOUNT} FROM accounts WHERE request_id = $1", request_id)
        assert row is not None
        return row

    async def one(self, identifier: str, within: str | None) -> "Record":
        """NOT_FOUND when there is none."""
        async with self._connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {_ACCOUNT} FROM accounts WHERE id = $1 AND ($2::text IS NULL OR id = $2)", identifier, within
            )
        return found(row, "account", identifier)

    async def page(self, within: str | None, count: int, after: Position | None) -> "list[Record]":
        """Oldest first."""
        async with self._connection() as connection:
            return await connection.fetch(
                f"SELECT {_ACCOUNT} FROM accounts WHERE ($2::text IS NULL OR id = $2)"
                " AND ($3::timestamptz IS NULL OR (create_time, id) > ($3, $4)) ORDER BY create_time, id LIMIT $1",
                count,
                within,
                after.create_time if after else None,
                after.id if after else None,
            )

    async def update(self, identifier: str, within: str | None, changes: Mapping[str, object]) -> "Record":
        """The changed account; NOT_FOUND when there is none, or none any more: an erased one cannot be changed."""
        async with self._connection() as connection:
            row = await connection.fetchrow(
                f"UPDATE accounts SET {assignments(changes, 3)} WHERE id = $1 AND ($2::text IS NULL OR id = $2)"
                " AND erase_time IS NULL"
                f" RETURNING {_ACCOUNT}",
                identifier,
                within,
                *changes.values(),
            )
        return found(row, "account", identifier)
