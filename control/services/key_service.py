"""KeyService: creates, changes, rotates and revokes API keys. A key's text is returned once and never stored."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from uplion.control.v1 import key_pb2, key_service_pb2_grpc
from uplion.control.v1.key_pb2 import Key

from control.invalidation import Invalidations
from control.requests import fields, key_fields, limit_fields, paging
from control.requests.caller import Caller
from control.requests.update_mask import changed
from control.services.account_service import ACCOUNT_DEFAULT, NAME_CHARACTERS
from control.stores.keys import KeyStore, NewKey, Secret
from credentials import api_keys

if TYPE_CHECKING:
    import asyncpg

    from control.requests.caller import Context

_OVERLAP_MOST = timedelta(days=366)
_UPDATABLE = ("name", "labels", "state", "limits", "models", "tiers", "networks", "expire_time")


class KeyService(key_service_pb2_grpc.KeyServiceServicer):
    """Keys in Postgres, as digests under the first pepper; a change is published to every authz."""

    def __init__(
        self, store: KeyStore, invalidations: Invalidations, *, peppers: Mapping[str, bytes], environment: str
    ) -> None:
        self._store = store
        self._invalidations = invalidations
        self._pepper_id, self._pepper = next(iter(peppers.items()))
        self._environment = environment

    async def CreateKey(self, request: key_pb2.CreateKeyRequest, context: "Context") -> key_pb2.CreateKeyResponse:
        caller = Caller.current()
        project = fields.text("project", request.project, most=NAME_CHARACTERS) or None
        wanted = NewKey(
            account=fields.account(request.account, caller) or (None if project else ACCOUNT_DEFAULT),
            project=project,
            name=fields.text("name", request.name.strip(), most=NAME_CHARACTERS),
            labels=fields.labels(request.labels),
            scopes=key_fields.scopes(request.scopes, caller),
            limits=limit_fields.checked(request.limits),
            models=key_fields.models(request.models),
            tiers=key_fields.tiers(request.tiers),
            networks=key_fields.networks(request.networks),
            expire_time=key_fields.expire_time(request.expire_time) if request.HasField("expire_time") else None,
        )
        made = api_keys.generate(self._environment)
        row = await self._store.create(self._secret(made), wanted, fields.request_id(request.request_id))
        return key_pb2.CreateKeyResponse(key=_key(row), secret=made.text)

    async def GetKey(self, request: key_pb2.GetKeyRequest, context: "Context") -> key_pb2.GetKeyResponse:
        row = await self._store.one(fields.identifier(request.id), Caller.current().within)
        return key_pb2.GetKeyResponse(key=_key(row))

    async def ListKeys(self, request: key_pb2.ListKeysRequest, context: "Context") -> key_pb2.ListKeysResponse:
        caller = Caller.current()
        size = paging.page_size(request.page_size)
        rows = await self._store.page(
            fields.account(request.account, caller),
            fields.text("project", request.project, most=NAME_CHARACTERS) or None,
            size + 1,
            paging.read_position(request.page_token),
            operators=caller.operator,
        )
        return key_pb2.ListKeysResponse(
            keys=[_key(row) for row in rows[:size]], next_page_token=paging.next_page(rows, size)
        )

    async def UpdateKey(self, request: key_pb2.UpdateKeyRequest, context: "Context") -> key_pb2.UpdateKeyResponse:
        caller = Caller.current()
        row = await self._store.update(
            fields.identifier(request.id), caller.within, caller.grantable, _changes(request)
        )
        await self._invalidations.key(row["id"])
        return key_pb2.UpdateKeyResponse(key=_key(row))

    async def RotateKey(self, request: key_pb2.RotateKeyRequest, context: "Context") -> key_pb2.RotateKeyResponse:
        made, caller = api_keys.generate(self._environment), Caller.current()
        new, old = await self._store.rotate(
            fields.identifier(request.id),
            caller.within,
            caller.grantable,
            self._secret(made),
            _overlap(request.overlap),
            key_fields.expire_time(request.expire_time) if request.HasField("expire_time") else None,
            fields.request_id(request.request_id),
        )
        await self._invalidations.key(old["id"])
        return key_pb2.RotateKeyResponse(key=_key(new), secret=made.text, replaced=_key(old))

    async def RevokeKey(self, request: key_pb2.RevokeKeyRequest, context: "Context") -> key_pb2.RevokeKeyResponse:
        row = await self._store.revoke(fields.identifier(request.id), Caller.current().within)
        await self._invalidations.key(row["id"])
        return key_pb2.RevokeKeyResponse(key=_key(row))

    async def DeleteKey(self, request: key_pb2.DeleteKeyRequest, context: "Context") -> key_pb2.DeleteKeyResponse:
        identifier = fields.identifier(request.id)
        await self._store.delete(identifier, Caller.current().within)
        await self._invalidations.key(identifier)
        return key_pb2.DeleteKeyResponse()

    def _secret(self, made: api_keys.ApiKey) -> Secret:
        return Secret(made.id, api_keys.digest(made.secret, self._pepper), self._pepper_id, made.secret[-4:])


def _changes(request: key_pb2.UpdateKeyRequest) -> dict[str, object]:
    """Columns and their new values."""
    values: dict[str, Callable[[], object]] = {
        "name": lambda: fields.text("name", request.name.strip(), most=NAME_CHARACTERS),
        "labels": lambda: fields.labels(request.labels),
        "state": lambda: fields.state(request.state),
        "limits": lambda: limit_fields.checked(request.limits),
        "models": lambda: key_fields.models(request.models),
        "tiers": lambda: key_fields.tiers(request.tiers),
        "networks": lambda: key_fields.networks(request.networks),
        "expire_time": lambda: key_fields.expire_time(request.expire_time) if request.HasField("expire_time") else None,
    }
    return {field: values[field]() for field in changed(request, _UPDATABLE)}


def _overlap(value: Duration) -> datetime:
    """When the old key ends."""
    try:
        overlap = value.ToTimedelta()
    except (ValueError, OverflowError):
        raise fields.invalid("overlap", "is no duration") from None
    if not timedelta() <= overlap <= _OVERLAP_MOST:
        raise fields.invalid("overlap", f"must be from 0 to {_OVERLAP_MOST.days} days")
    return datetime.now(UTC) + overlap


def _key(row: "asyncpg.Record") -> Key:
    return Key(
        id=row["id"],
        account=row["account"],
        project=row["project"] or "",
        name=row["name"],
        labels=json.loads(row["labels"]),
        state=fields.STATES[row["state"]],
        scopes=row["scopes"],
        limits=limit_fields.shown(row["limits"]),
        models=row["models"],
        tiers=row["tiers"],
        networks=[str(network) for network in row["networks"]],
        create_time=row["create_time"],
        expire_time=row["expire_time"],
        last_used_time=row["last_used_time"],
        last_four=row["last_four"],
        pepper_id=row["pepper_id"],
        successor=row["successor"] or "",
    )
