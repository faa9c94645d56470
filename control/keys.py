"""KeyService: what opens the door. A key's text leaves this module once and is kept nowhere."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc.aio
from uplion.control.v1 import key_pb2, key_service_pb2_grpc
from uplion.control.v1.key_pb2 import Key

from common import keys, names
from control import limits, requests
from control.invalidation import Invalidations
from control.store import Store

if TYPE_CHECKING:
    import asyncpg

    Context = grpc.aio.ServicerContext[Any, Any]

ACCOUNT_DEFAULT = "default"
_NAME_CHARACTERS = 100
_SCOPES = (names.SCOPE_INFERENCE, names.SCOPE_ADMIN)


class KeyService(key_service_pb2_grpc.KeyServiceServicer):
    """Keys in Postgres, as digests; a revoked one ends everywhere at once."""

    def __init__(
        self, store: Store, invalidations: Invalidations, *, pepper: bytes, pepper_id: str, environment: str
    ) -> None:
        self._store = store
        self._invalidations = invalidations
        self._pepper = pepper
        self._pepper_id = pepper_id
        self._environment = environment

    async def CreateKey(  # noqa: N802  # the contract's name
        self, request: key_pb2.CreateKeyRequest, context: "Context"
    ) -> key_pb2.CreateKeyResponse:
        requests.caller(context)
        expire_time = _expire_time(request)
        made = keys.generate(self._environment)
        row = await self._store.create_key(
            identifier=made.id,
            account=requests.text("account", request.account, most=_NAME_CHARACTERS) or ACCOUNT_DEFAULT,
            name=requests.text("name", request.name.strip(), most=_NAME_CHARACTERS),
            scopes=_scopes(list(request.scopes)),
            limits=limits.checked(request.limits),
            digest=keys.digest(made.secret, self._pepper),
            pepper_id=self._pepper_id,
            last_four=made.secret[-4:],
            expire_time=expire_time,
            request_id=requests.request_id(request.request_id),
        )
        return key_pb2.CreateKeyResponse(key=_key(row), secret=made.text)

    async def ListKeys(  # noqa: N802  # the contract's name
        self, request: key_pb2.ListKeysRequest, context: "Context"
    ) -> key_pb2.ListKeysResponse:
        requests.caller(context)
        size = requests.page_size(request.page_size)
        account = requests.text("account", request.account, most=_NAME_CHARACTERS) or None
        rows = await self._store.list_keys(account, size + 1, requests.read_position(request.page_token))
        response = key_pb2.ListKeysResponse(keys=[_key(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = requests.write_position(rows[size - 1]["create_time"], rows[size - 1]["id"])
        return response

    async def RevokeKey(  # noqa: N802  # the contract's name
        self, request: key_pb2.RevokeKeyRequest, context: "Context"
    ) -> key_pb2.RevokeKeyResponse:
        requests.caller(context)
        row = await self._store.revoke_key(requests.text("id", request.id, least=1, most=_NAME_CHARACTERS))
        await self._invalidations.key(row["id"])
        return key_pb2.RevokeKeyResponse(key=_key(row))


def _scopes(asked: list[str]) -> list[str]:
    """Sorted, each once; inference alone when none is asked for."""
    for scope in asked:
        if scope not in _SCOPES:
            raise requests.invalid("scopes", f"{scope[:40]!r} is not one of {', '.join(_SCOPES)}")
    return sorted(set(asked)) or [names.SCOPE_INFERENCE]


def _expire_time(request: key_pb2.CreateKeyRequest) -> datetime | None:
    if not request.HasField("expire_time"):
        return None
    try:
        moment = request.expire_time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise requests.invalid("expire_time", "is no moment") from None
    if moment <= datetime.now(UTC):
        raise requests.invalid("expire_time", "must be in the future")
    return moment


def _key(row: "asyncpg.Record") -> Key:
    return Key(
        id=row["id"],
        account=row["account"],
        name=row["name"],
        state=requests.STATES[row["state"]],
        scopes=row["scopes"],
        create_time=row["create_time"],
        expire_time=row["expire_time"],
        last_four=row["last_four"],
        limits=limits.shown(row["limits"]),
    )
