"""Erases an account's personal data in Postgres; usage stays in the ledger under the account's id."""

from typing import TYPE_CHECKING

from common.errors import Reason, UplionError
from control.stores.database import Database

if TYPE_CHECKING:
    import asyncpg

    Record = asyncpg.Record

_NOBODY = "erased"
# 32 zero bytes: no secret has this digest, so the key could not be used even if it were not revoked.
_ERASE_KEYS = """
    UPDATE keys SET state = 'revoked', name = '', labels = '{}', request_id = NULL, networks = '{}', last_four = '',
        last_used_time = NULL, digest = decode(repeat('00', 32), 'hex')
    WHERE id IN (SELECT id FROM keys WHERE account = $1 ORDER BY id FOR UPDATE) RETURNING id
"""
_ERASE_PROJECTS = """
    UPDATE projects SET state = 'suspended', name = $2, labels = '{}', request_id = NULL WHERE account = $1
"""
_ERASE_ACCOUNT = """
    UPDATE accounts SET state = 'suspended', name = $2, labels = '{}', request_id = NULL,
        erase_time = coalesce(erase_time, now())
    WHERE id = $1 RETURNING *
"""


class Erasure(Database):
    """In one transaction; repeating it changes nothing."""

    async def erase(self, identifier: str) -> "tuple[Record, list[str]]":
        """The erased account and the ids of its keys; NOT_FOUND when there is none."""
        async with self._connection() as connection, connection.transaction():
            row = await connection.fetchrow(_ERASE_ACCOUNT, identifier, _NOBODY)
            if row is None:
                raise UplionError(Reason.NOT_FOUND, f"There is no account {identifier!r}.", param="id")
            await connection.execute(_ERASE_PROJECTS, identifier, _NOBODY)
            return row, [key["id"] for key in await connection.fetch(_ERASE_KEYS, identifier)]
