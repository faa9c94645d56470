"""AccountService: who pays."""

import json
import secrets
from typing import TYPE_CHECKING, Any

import grpc.aio
from uplion.control.v1 import account_pb2, account_service_pb2_grpc
from uplion.control.v1.account_pb2 import Account

from control import limits, requests
from control.erasure import Erasure
from control.invalidation import Invalidations
from control.permissions import Caller
from control.store import Store
from control.updates import changed

if TYPE_CHECKING:
    import asyncpg

    Context = grpc.aio.ServicerContext[Any, Any]

ACCOUNT_DEFAULT = "default"
NAME_CHARACTERS = 100
_ID_ALPHABET = "0123456789abcdefghijkmnpqrstuvwxyz"
_UPDATABLE = ("name", "labels", "state", "limits")


class AccountService(account_service_pb2_grpc.AccountServiceServicer):
    """Accounts in Postgres; a change reaches every authz at once."""

    def __init__(self, store: Store, erasure: Erasure, invalidations: Invalidations) -> None:
        self._store = store
        self._erasure = erasure
        self._invalidations = invalidations

    async def CreateAccount(  # noqa: N802  # the contract's name
        self, request: account_pb2.CreateAccountRequest, context: "Context"
    ) -> account_pb2.CreateAccountResponse:
        row = await self._store.create_account(
            new_id("acc"),
            requests.text("name", request.name.strip(), least=1, most=NAME_CHARACTERS),
            requests.labels(request.labels),
            limits.checked(request.limits),
            requests.request_id(request.request_id),
        )
        return account_pb2.CreateAccountResponse(account=_account(row))

    async def GetAccount(  # noqa: N802  # the contract's name
        self, request: account_pb2.GetAccountRequest, context: "Context"
    ) -> account_pb2.GetAccountResponse:
        row = await self._store.account(requests.identifier(request.id), requests.caller(context).within)
        return account_pb2.GetAccountResponse(account=_account(row))

    async def ListAccounts(  # noqa: N802  # the contract's name
        self, request: account_pb2.ListAccountsRequest, context: "Context"
    ) -> account_pb2.ListAccountsResponse:
        size = requests.page_size(request.page_size)
        rows = await self._store.list_accounts(
            requests.caller(context).within, size + 1, requests.read_position(request.page_token)
        )
        return account_pb2.ListAccountsResponse(
            accounts=[_account(row) for row in rows[:size]], next_page_token=requests.next_page(rows, size)
        )

    async def UpdateAccount(  # noqa: N802  # the contract's name
        self, request: account_pb2.UpdateAccountRequest, context: "Context"
    ) -> account_pb2.UpdateAccountResponse:
        caller = requests.caller(context)
        row = await self._store.update_account(
            requests.identifier(request.id), caller.within, _changes(request, caller)
        )
        await self._invalidations.account(row["id"])
        return account_pb2.UpdateAccountResponse(account=_account(row))

    async def EraseAccount(  # noqa: N802  # the contract's name
        self, request: account_pb2.EraseAccountRequest, context: "Context"
    ) -> account_pb2.EraseAccountResponse:
        identifier = requests.identifier(request.id)
        if identifier == requests.caller(context).account:
            raise requests.invalid("id", "is the account of the key that asks, which would end with it")
        row, keys = await self._erasure.erase(identifier)
        await self._invalidations.account(identifier)
        for key in keys:
            await self._invalidations.key(key)
        return account_pb2.EraseAccountResponse(account=_account(row))


def new_id(prefix: str) -> str:
    """Such as `acc_7h2k...`: 16 characters that cannot be mistaken for each other."""
    return f"{prefix}_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(16))


def _changes(request: account_pb2.UpdateAccountRequest, caller: Caller) -> dict[str, object]:
    """Columns and their new values. What an account may spend is not its own to say."""
    changes: dict[str, object] = {}
    for field in changed(request, _UPDATABLE):
        if field == "name":
            changes[field] = requests.text("name", request.name.strip(), least=1, most=NAME_CHARACTERS)
        elif field == "labels":
            changes[field] = requests.labels(request.labels)
        elif field == "state":
            caller.require_operator("state", "To suspend or activate an account")
            changes[field] = requests.state(request.state)
        else:
            caller.require_operator("limits", "To change an account's limits")
            changes[field] = limits.checked(request.limits)
    return changes


def _account(row: "asyncpg.Record") -> Account:
    return Account(
        id=row["id"],
        name=row["name"],
        labels=json.loads(row["labels"]),
        state=requests.STATES[row["state"]],
        limits=limits.shown(row["limits"]),
        create_time=row["create_time"],
        erase_time=row["erase_time"],
    )
