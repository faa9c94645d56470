"""Keys in Postgres: their digests, scopes and restrictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

import asyncpg

from common import names
from common.errors import Reason, UplionError
from control.requests.paging import Position
from control.stores.database import Database, assignments, found

if TYPE_CHECKING:
    Record = asyncpg.Record

_KEY = (
    "id, account, project, name, labels, state, scopes, limits, models, tiers, networks, create_time, expire_time,"
    " last_used_time, last_four, pepper_id, successor"
)
# Columns that a successor takes from the key it replaces; its limits count from zero.
_INHERITED = "account, project, name, labels, scopes, limits, models, tiers, networks"
# $1 is the key, $2 the account it must belong to, null being any. Only the operator reaches the operator's keys.
_ONE = f"id = $1 AND ($2::text IS NULL OR account = $2 AND NOT '{names.SCOPE_ADMIN}' = ANY (scopes))"
_SHOWN_ONCE = "A key was already made for this request_id, and a key is shown once: revoke it and ask with another."


@dataclass(frozen=True, slots=True)
class Secret:
    """What is stored of a new key's text."""

    id: str
    digest: bytes
    pepper_id: str
    last_four: str


@dataclass(frozen=True, slots=True)
class NewKey:
    """The fields of a new key; `labels` and `limits` are JSON. Without an account it gets the project's."""

    account: str | None
    project: str | None
    name: str
    labels: str
    scopes: Sequence[str]
    limits: str
    models: Sequence[str]
    tiers: Sequence[str]
    networks: Sequence[IPv4Network | IPv6Network]
    expire_time: datetime | None


class KeyStore(Database):
    """`within` is the account a key must belong to, None being any; `changes` are columns and new values.

    `grantable` are the scopes that the caller may grant, None being all: a key with another one it can neither change
    nor replace.
    """

    async def create(self, secret: Secret, wanted: NewKey, request_id: str | None) -> "Record":
        """The new key. ALREADY_EXISTS for a repeated request id, NOT_FOUND for an unknown account or project."""
        try:
            async with self._connection() as connection:
                row = await connection.fetchrow(
                    "INSERT INTO keys (id, digest, pepper_id, last_four, request_id, account, project, name, labels,"
                    " scopes, limits, models, tiers, networks, expire_time)"
                    " VALUES ($1, $2, $3, $4, $5, coalesce($6, (SELECT account FROM projects WHERE id = $7)),"
                    f" $7, $8, $9, $10, $11, $12, $13, $14, $15) RETURNING {_KEY}",
                    secret.id,
                    secret.digest,
                    secret.pepper_id,
                    secret.last_four,
                    request_id,
                    wanted.account,
                    wanted.project,
                    wanted.name,
                    wanted.labels,
                    wanted.scopes,
                    wanted.limits,
                    wanted.models,
                    wanted.tiers,
                    wanted.networks,
                    wanted.expire_time,
                )
        except asyncpg.UniqueViolationError:
            raise UplionError(Reason.ALREADY_EXISTS, _SHOWN_ONCE, param="request_id") from None
        except asyncpg.NotNullViolationError:  # no account given, and the project has none
            raise _no("project", wanted.project) from None
        except asyncpg.ForeignKeyViolationError as problem:
            if "project" in str(problem.constraint_name):
                raise _no("project", wanted.project) from None
            raise _no("account", wanted.account) from None
        assert row is not None
        return row

    async def one(self, identifier: str, within: str | None) -> "Record":
        """NOT_FOUND when there is none."""
        async with self._connection() as connection:
            row = await connection.fetchrow(f"SELECT {_KEY} FROM keys WHERE {_ONE}", identifier, within)
        return found(row, "key", identifier)

    async def page(
        self, account: str | None, project: str | None, count: int, after: Position | None, *, operators: bool
    ) -> "list[Record]":
        """Oldest first; of one account or of all, of one project or of all, with the operator's keys or without."""
        async with self._connection() as connection:
            return await connection.fetch(
                f"SELECT {_KEY} FROM keys WHERE ($2::text IS NULL OR account = $2)"
                " AND ($3::text IS NULL OR project = $3)"
                f" AND ($4 OR NOT '{names.SCOPE_ADMIN}' = ANY (scopes))"
                " AND ($5::timestamptz IS NULL OR (create_time, id) > ($5, $6)) ORDER BY create_time, id LIMIT $1",
                count,
                account,
                project,
                operators,
                after.create_time if after else None,
                after.id if after else None,
            )

    async def update(
        self, identifier: str, within: str | None, grantable: Sequence[str] | None, changes: Mapping[str, object]
    ) -> "Record":
        """The changed key; NOT_FOUND when there is none, INVALID_REQUEST when it is revoked, or PERMISSION_DENIED."""
        async with self._connection() as connection:
            row = await connection.fetchrow(
                f"UPDATE keys SET {assignments(changes, 4)} WHERE {_ONE} AND state <> 'revoked'"
                f" AND ($3::text[] IS NULL OR scopes <@ $3) RETURNING {_KEY}",
                identifier,
                within,
                grantable,
                *changes.values(),
            )
        if row is None:
            _check_scopes(await self.one(identifier, within), grantable)
            raise UplionError(Reason.INVALID_REQUEST, "A revoked key cannot be changed.", param="id")
        return row

    async def revoke(self, identifier: str, within: str | None) -> "Record":
        """The revoked key; NOT_FOUND when there is none."""
        async with self._connection() as connection:
            row = await connection.fetchrow(
                f"UPDATE keys SET state = 'revoked' WHERE {_ONE} RETURNING {_KEY}", identifier, within
            )
        return found(row, "key", identifier)

    async def rotate(
        self,
        identifier: str,
        within: str | None,
        grantable: Sequence[str] | None,
        secret: Secret,
        end: datetime,
        expire_time: datetime | None,
        request_id: str | None,
    ) -> "tuple[Record, Record]":
        """The new key, and the old one, which ends at `end` if not before; the new one's expiry is the old one's when
        it is None. NOT_FOUND when there is no such key, INVALID_REQUEST when it does not work or was replaced before,
        or PERMISSION_DENIED.
        """
        try:
            async with self._connection() as connection, connection.transaction():
                old = found(
                    await connection.fetchrow(f"SELECT {_KEY} FROM keys WHERE {_ONE} FOR UPDATE", identifier, within),
                    "key",
                    identifier,
                )
                _check_scopes(old, grantable)
                if old["successor"] is not None:
                    raise _not_rotated(f"it was replaced by {old['successor']}")
                if old["state"] != "active":
                    raise _not_rotated(f"it is {old['state']}")
                new = await connection.fetchrow(
                    f"INSERT INTO keys (id, digest, pepper_id, last_four, request_id, expire_time, {_INHERITED})"
                    f" SELECT $2, $3, $4, $5, $6, coalesce($7, expire_time), {_INHERITED} FROM keys"
                    f" WHERE id = $1 AND (expire_time IS NULL OR expire_time > now()) RETURNING {_KEY}",
                    identifier,
                    secret.id,
                    secret.digest,
                    secret.pepper_id,
                    secret.last_four,
                    request_id,
                    expire_time,
                )
                if new is None:
                    raise _not_rotated("it has expired")
                replaced = await connection.fetchrow(
                    f"UPDATE keys SET successor = $2, expire_time = least(expire_time, $3) WHERE id = $1"
                    f" RETURNING {_KEY}",
                    identifier,
                    secret.id,
                    end,
                )
        except asyncpg.UniqueViolationError:
            raise UplionError(Reason.ALREADY_EXISTS, _SHOWN_ONCE, param="request_id") from None
        assert replaced is not None
        return new, replaced

    async def delete(self, identifier: str, within: str | None) -> None:
        """NOT_FOUND when there is none, INVALID_REQUEST when it still works or may work again."""
        async with self._connection() as connection:
            gone = await connection.fetchval(
                f"DELETE FROM keys WHERE {_ONE} AND (state = 'revoked' OR expire_time <= now()) RETURNING id",
                identifier,
                within,
            )
        if gone is None:
            await self.one(identifier, within)
            raise UplionError(Reason.INVALID_REQUEST, "Revoke the key before you delete it.", param="id")

    async def used(self, identifiers: Sequence[str], moment: datetime) -> None:
        """Records that these keys were used; unknown ids are ignored."""
        async with self._connection() as connection:
            await connection.execute(
                # Locked in one order, so that two control processes with the same keys do not wait for each other.
                "UPDATE keys SET last_used_time = greatest(last_used_time, $2) FROM"
                " (SELECT id FROM keys WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE) AS locked"
                " WHERE keys.id = locked.id",
                identifiers,
                moment,
            )


def _no(kind: str, identifier: str | None) -> UplionError:
    return UplionError(Reason.NOT_FOUND, f"There is no {kind} {identifier!r}.", param=kind)


def _check_scopes(row: "Record", grantable: Sequence[str] | None) -> None:
    if grantable is not None and (missing := sorted(set(row["scopes"]).difference(grantable))):
        message = f'This key has the scope "{missing[0]}": to change or rotate it needs a key that has it too.'
        raise UplionError(Reason.PERMISSION_DENIED, message, param="id", scope=missing[0])


def _not_rotated(why: str) -> UplionError:
    return UplionError(Reason.INVALID_REQUEST, f"This key cannot be rotated: {why}.", param="id")
