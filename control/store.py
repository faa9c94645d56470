"""Postgres as control uses it: accounts and keys, written here; usage, read here."""

# ruff: noqa: S608  # statements are put together from this module's constants; values travel as parameters

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import asyncpg

from common.errors import Reason, UplionError
from control.database import Database
from control.requests import Position

if TYPE_CHECKING:
    Record = asyncpg.Record

_ACCOUNT = "id, name, state, limits, create_time"
_KEY = "id, account, name, state, scopes, limits, create_time, expire_time, last_four"


class Store(Database):
    """Every query has a deadline; what the database refuses is raised as the error the client will read."""

    async def create_account(self, identifier: str, name: str, limits: str, request_id: str | None) -> "Record":
        """The new account; for a repeated request id, the one it made the first time."""
        async with self._connection() as connection:
            row = await connection.fetchrow(
                "INSERT INTO accounts (id, name, limits, request_id)"
                f" VALUES ($1, $2, $3, $4) ON CONFLICT (request_id) DO NOTHING RETURNING {_ACCOUNT}",
                identifier,
                name,
                limits,
                request_id,
            )
            if row is None:
                row = await connection.fetchrow(f"SELECT {_ACCOUNT} FROM accounts WHERE request_id = $1", request_id)
        assert row is not None
        return row

    async def list_accounts(self, count: int, after: Position | None) -> "list[Record]":
        """Oldest first."""
        async with self._connection() as connection:
            return await connection.fetch(
                f"SELECT {_ACCOUNT} FROM accounts WHERE $2::timestamptz IS NULL OR (create_time, id) > ($2, $3)"
                " ORDER BY create_time, id LIMIT $1",
                count,
                after.create_time if after else None,
                after.id if after else None,
            )

    async def update_account(self, identifier: str, changes: Mapping[str, object]) -> "Record":
        """The changed account; NOT_FOUND when there is none. `changes` are columns and their new values."""
        columns = ", ".join(f"{column} = ${number}" for number, column in enumerate(changes, start=2))
        async with self._connection() as connection:
            row = await connection.fetchrow(
                f"UPDATE accounts SET {columns} WHERE id = $1 RETURNING {_ACCOUNT}", identifier, *changes.values()
            )
        if row is None:
            raise UplionError(Reason.NOT_FOUND, f"There is no account {identifier!r}.", param="id")
        return row

    async def create_key(
        self,
        *,
        identifier: str,
        account: str,
        name: str,
        scopes: list[str],
        limits: str,
        digest: bytes,
        pepper_id: str,
        last_four: str,
        expire_time: datetime | None,
        request_id: str | None,
    ) -> "Record":
        """The new key. ALREADY_EXISTS for a repeated request id, NOT_FOUND for an unknown account."""
        try:
            async with self._connection() as connection:
                row = await connection.fetchrow(
                    "INSERT INTO keys (id, account, name, scopes, limits, digest, pepper_id,"
                    " last_four, expire_time, request_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
                    f" RETURNING {_KEY}",
                    identifier,
                    account,
                    name,
                    scopes,
                    limits,
                    digest,
                    pepper_id,
                    last_four,
                    expire_time,
                    request_id,
                )
        except asyncpg.ForeignKeyViolationError:
            raise UplionError(Reason.NOT_FOUND, f"There is no account {account!r}.", param="account") from None
        except asyncpg.UniqueViolationError:
            raise UplionError(
                Reason.ALREADY_EXISTS,
                "A key was already made for this request_id, and a key is shown once: revoke it and ask with another.",
                param="request_id",
            ) from None
        assert row is not None
        return row

    async def list_keys(self, account: str | None, count: int, after: Position | None) -> "list[Record]":
        """Oldest first; of one account, or of all."""
        async with self._connection() as connection:
            return await connection.fetch(
                f"SELECT {_KEY} FROM keys WHERE ($2::text IS NULL OR account = $2)"
                " AND ($3::timestamptz IS NULL OR (create_time, id) > ($3, $4)) ORDER BY create_time, id LIMIT $1",
                count,
                account,
                after.create_time if after else None,
                after.id if after else None,
            )

    async def revoke_key(self, identifier: str) -> "Record":
        """The revoked key; NOT_FOUND when there is none."""
        async with self._connection() as connection:
            row = await connection.fetchrow(
                f"UPDATE keys SET state = 'revoked' WHERE id = $1 RETURNING {_KEY}", identifier
            )
        if row is None:
            raise UplionError(Reason.NOT_FOUND, f"There is no key {identifier!r}.", param="id")
        return row
