"""Projects in Postgres."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import asyncpg

from common.errors import Reason, UplionError
from control.requests.paging import Position
from control.stores.database import Database, assignments, found

if TYPE_CHECKING:
    Record = asyncpg.Record

_PROJECT = "id, account, name, labels, state, limits, create_time"


class ProjectStore(Database):
    """Every query has a deadline; a constraint that is violated is raised as the error for the client.

    Reads and changes of one object take the account that it must belong to, None being any: outside of it, it is not
    found. `changes` are columns and their new values.
    """

    async def create(
        self, identifier: str, account: str, name: str, labels: str, limits: str, request_id: str | None
    ) -> "Record":
        """The new project; for a repeated request id of this account, the one it made the first time.

        NOT_FOUND for an unknown account, ALREADY_EXISTS for another account's request id.
        """
        try:
            async with self._connection() as connection:
                row = await connection.fetchrow(
                    "INSERT INTO projects (id, account, name, labels, limits, request_id)"
                    " VALUES ($1, $2, $3, $4, $5, $6)"
                    f" ON CONFLICT (request_id) DO NOTHING RETURNING {_PROJECT}",
                    identifier,
                    account,
                    name,
                    labels,
                    limits,
                    request_id,
                )
                if row is None:
                    row = await connection.fetchrow(
                        f"SELECT {_PROJECT} FROM projects WHERE request_id = $1 AND account = $2", request_id, account
                    )
        except asyncpg.ForeignKeyViolationError:
            raise UplionError(Reason.NOT_FOUND, f"There is no account {account!r}.", param="account") from None
        if row is None:
            raise UplionError(Reason.ALREADY_EXISTS, "This request_id was used before.", param="request_id")
        return row

    async def one(self, identifier: str, within: str | None) -> "Record":
        """NOT_FOUND when there is none."""
        async with self._connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {_PROJECT} FROM projects WHERE id = $1 AND ($2::text IS NULL OR account = $2)",
                identifier,
                within,
            )
        return found(row, "project", identifier)

    async def page(self, account: str | None, count: int, after: Position | None) -> "list[Record]":
        """Oldest first; of one account, or of all."""
        async with self._connection() as connection:
            return await connection.fetch(
                f"SELECT {_PROJECT} FROM projects WHERE ($2::text IS NULL OR account = $2)"
                " AND ($3::timestamptz IS NULL OR (create_time, id) > ($3, $4)) ORDER BY create_time, id LIMIT $1",
                count,
                account,
                after.create_time if after else None,
                after.id if after else None,
            )

    async def update(self, identifier: str, within: str | None, changes: Mapping[str, object]) -> "Record":
        """The changed project; NOT_FOUND when there is none."""
        async with self._connection() as connection:
            row = await connection.fetchrow(
                f"UPDATE projects SET {assignments(changes, 3)} WHERE id = $1 AND ($2::text IS NULL OR account = $2)"
                f" RETURNING {_PROJECT}",
                identifier,
                within,
                *changes.values(),
            )
        return found(row, "project", identifier)
