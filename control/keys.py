"""KeyService: what opens the door. A key's text leaves this module once and is kept nowhere."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from uplion.control.v1 import key_pb2, key_service_pb2_grpc
from uplion.control.v1.key_pb2 import Key

from control import attributes, limits, requests
from control.accounts import ACCOUNT_DEFAULT, NAME_CHARACTERS
from control.invalidation import Invalidations
from control.keystore import KeyStore, NewKey, Secret
from control.updates import changed
from credentials import api_keys

if TYPE_CHECKING:
    import asyncpg

    Context = grpc.aio.ServicerContext[Any, Any]

_OVERLAP_MOST = timedelta(days=366)
_UPDATABLE = ("name", "labels", "state", "limits", "models", "tiers", "networks", "expire_time")


class KeyService(key_service_pb2_grpc.KeyServiceServicer):
    """Keys in Postgres, as digests under the first of the peppers; a changed one is known everywhere at once."""

    def __init__(
        self, store: KeyStore, invalidations: Invalidations, *, peppers: Mapping[str, bytes], environment: str
    ) -> None:
        self._store = store
        self._invalidations = invalidations
        self._pepper_id, self._pepper = next(iter(peppers.items()))
        self._environment = environment

    async def CreateKey(  # noqa: N802  # the contract's name
        self, request: key_pb2.CreateKeyRequest, context: "Context"
    ) -> key_pb2.CreateKeyResponse:
        caller = requests.caller(context)
        project = requests.text("project", request.project, most=NAME_CHARACTERS) or None
        wanted = NewKey(
            account=requests.account(request.account, caller) or (None if project else ACCOUNT_DEFAULT),
            project=project,
            name=requests.text("name", request.name.strip(), most=NAME_CHARACTERS),
            labels=requests.labels(request.labels),
            scopes=attributes.scopes(request.scopes, caller),
            limits=limits.checked(request.limits),
            models=attributes.models(request.models),
            tiers=attributes.tiers(request.tiers),
            networks=attributes.networks(request.networks),
            expire_time=attributes.expire_time(request.expire_time) if request.HasField("expire_time") else None,
        )
        made = api_keys.generate(self._environment)
        row = await self._store.create(self._secret(made), wanted, requests.request_id(request.request_id))
        return key_pb2.CreateKeyResponse(key=_key(row), secret=made.text)

    async def GetKey(  # noqa: N802  # the contract's name
        self, request: key_pb2.GetKeyRequest, context: "Context"
    ) -> key_pb2.GetKeyResponse:
        row = await self._store.one(requests.identifier(request.id), requests.caller(context).within)
        return key_pb2.GetKeyResponse(key=_key(row))

    async def ListKeys(  # noqa: N802  # the contract's name
        self, request: key_pb2.ListKeysRequest, context: "Context"
    ) -> key_pb2.ListKeysResponse:
        caller = requests.caller(context)
        size = requests.page_size(request.page_size)
        rows = await self._store.page(
            requests.account(request.account, caller),
            requests.text("project", request.project, most=NAME_CHARACTERS) or None,
            size + 1,
            requests.read_position(request.page_token),
            operators=caller.operator,
        )
        return key_pb2.ListKeysResponse(
            keys=[_key(row) for row in rows[:size]], next_page_token=requests.next_page(rows, size)
        )

    async def UpdateKey(  # noqa: N802  # the contract's name
        self, request: key_pb2.UpdateKeyRequest, context: "Context"
    ) -> key_pb2.UpdateKeyResponse:
        row = await self._store.update(
            requests.identifier(request.id), requests.caller(context).within, _changes(request)
        )
        await self._invalidations.key(row["id"])
        return key_pb2.UpdateKeyResponse(key=_key(row))

    async def RotateKey(  # noqa: N802  # the contract's name
        self, request: key_pb2.RotateKeyRequest, context: "Context"
    ) -> key_pb2.RotateKeyResponse:
        made = api_keys.generate(self._environment)
        new, old = await self._store.rotate(
            requests.identifier(request.id),
            requests.caller(context).within,
            self._secret(made),
            _overlap(request.overlap),
            attributes.expire_time(request.expire_time) if request.HasField("expire_time") else None,
            requests.request_id(request.request_id),
        )
        await self._invalidations.key(old["id"])
        return key_pb2.RotateKeyResponse(key=_key(new), secret=made.text, replaced=_key(old))

    async def RevokeKey(  # noqa: N802  # the contract's name
        self, request: key_pb2.RevokeKeyRequest, context: "Context"
    ) -> key_pb2.RevokeKeyResponse:
        row = await self._store.revoke(requests.identifier(request.id), requests.caller(context).within)
        await self._invalidations.key(row["id"])
        return key_pb2.RevokeKeyResponse(key=_key(row))

    async def DeleteKey(  # noqa: N802  # the contract's name
        self, request: key_pb2.DeleteKeyRequest, context: "Context"
    ) -> key_pb2.DeleteKeyResponse:
        identifier = requests.identifier(request.id)
        await self._store.delete(identifier, requests.caller(context).within)
        await self._invalidations.key(identifier)
        return key_pb2.DeleteKeyResponse()

    def _secret(self, made: api_keys.ApiKey) -> Secret:
        return Secret(made.id, api_keys.digest(made.secret, self._pepper), self._pepper_id, made.secret[-4:])


def _changes(request: key_pb2.UpdateKeyRequest) -> dict[str, object]:
    """Columns and their new values."""
    values: dict[str, Callable[[], object]] = {
        "name": lambda: requests.text("name", request.name.strip(), most=NAME_CHARACTERS),
        "labels": lambda: requests.labels(request.labels),
        "state": lambda: requests.state(request.state),
        "limits": lambda: limits.checked(request.limits),
        "models": lambda: attributes.models(request.models),
        "tiers": lambda: attributes.tiers(request.tiers),
        "networks": lambda: attributes.networks(request.networks),
        "expire_time": lambda: attributes.expire_time(request.expire_time) if request.HasField("expire_time") else None,
    }
    return {field: values[field]() for field in changed(request, _UPDATABLE)}


def _overlap(value: Duration) -> datetime:
    """When the old key ends."""
    try:
        overlap = value.ToTimedelta()
    except (ValueError, OverflowError):
        raise requests.invalid("overlap", "is no duration") from None
    if not timedelta() <= overlap <= _OVERLAP_MOST:
        raise requests.invalid("overlap", f"must be from 0 to {_OVERLAP_MOST.days} days")
    return datetime.now(UTC) + overlap


def _key(row: "asyncpg.Record") -> Key:
    return Key(
        id=row["id"],
        account=row["account"],
        project=row["project"] or "",
        name=row["name"],
        labels=json.loads(row["labels"]),
        state=requests.STATES[row["state"]],
        scopes=row["scopes"],
        limits=limits.shown(row["limits"]),
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
