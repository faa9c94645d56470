"""AccountService: creates, reads, changes and erases accounts."""

import json
import secrets
from typing import TYPE_CHECKING

from uplion.control.v1 import account_pb2, account_service_pb2_grpc
from uplion.control.v1.account_pb2 import Account

from control.invalidation import Invalidations
from control.requests import fields, limit_fields, paging
from control.requests.caller import Caller
from control.requests.update_mask import changed
from control.stores.accounts import AccountStore
from control.stores.erasure import Erasure

if TYPE_CHECKING:
    import asyncpg

    from control.requests.caller import Context

ACCOUNT_DEFAULT = "default"
NAME_CHARACTERS = 100
_ID_ALPHABET = "0123456789abcdefghijkmnpqrstuvwxyz"
_UPDATABLE = ("name", "labels", "state", "limits")


class AccountService(account_service_pb2_grpc.AccountServiceServicer):
    """Accounts in Postgres; a change reaches every authz at once."""

    def __init__(self, store: AccountStore, erasure: Erasure, invalidations: Invalidations) -> None:
        self._store = store
        self._erasure = erasure
        self._invalidations = invalidations

    async def CreateAccount(
        self, request: account_pb2.CreateAccountRequest, context: "Context"
    ) -> account_pb2.CreateAccountResponse:
        row = await self._store.create(
            new_id("acc"),
            fields.text("name", request.name.strip(), least=1, most=NAME_CHARACTERS),
            fields.labels(request.labels),
            limit_fields.checked(request.limits),
            fields.request_id(request.request_id),
        )
        return account_pb2.CreateAccountResponse(account=_account(row))

    async def GetAccount(
        self, request: account_pb2.GetAccountRequest, context: "Context"
    ) -> account_pb2.GetAccountResponse:
        row = await self._store.one(fields.identifier(request.id), Caller.current().within)
        return account_pb2.GetAccountResponse(account=_account(row))

    async def ListAccounts(
        self, request: account_pb2.ListAccountsRequest, context: "Context"
    ) -> account_pb2.ListAccountsResponse:
        size = paging.page_size(request.page_size)
        rows = await self._store.page(Caller.current().within, size + 1, paging.read_position(request.page_token))
        return account_pb2.ListAccountsResponse(
            accounts=[_account(row) for row in rows[:size]], next_page_token=paging.next_page(rows, size)
        )

    async def UpdateAccount(
        self, request: account_pb2.UpdateAccountRequest, context: "Context"
    ) -> account_pb2.UpdateAccountResponse:
        caller = Caller.current()
        row = await self._store.update(fields.identifier(request.id), caller.within, _changes(request, caller))
        await self._invalidations.account(row["id"])
        return account_pb2.UpdateAccountResponse(account=_account(row))

    async def EraseAccount(
        self, request: account_pb2.EraseAccountRequest, context: "Context"
    ) -> account_pb2.EraseAccountResponse:
        identifier = fields.identifier(request.id)
        if identifier == Caller.current().account:
            raise fields.invalid("id", "is the account of the key that asks, which would end with it")
        row, keys = await self._erasure.erase(identifier)
        await self._invalidations.account(identifier)
        for key in keys:
            await self._invalidations.key(key)
        return account_pb2.EraseAccountResponse(account=_account(row))


def new_id(prefix: str) -> str:
    """Such as `acc_7h2k...`: 16 characters that cannot be mistaken for each other."""
    return f"{prefix}_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(16))


def _changes(request: account_pb2.UpdateAccountRequest, caller: Caller) -> dict[str, object]:
    """Columns and their new values. An account's own admin cannot change its state and limits."""
    changes: dict[str, object] = {}
    for field in changed(request, _UPDATABLE):
        if field == "name":
            changes[field] = fields.text("name", request.name.strip(), least=1, most=NAME_CHARACTERS)
        elif field == "labels":
            changes[field] = fields.labels(request.labels)
        elif field == "state":
            caller.require_operator("state", "To suspend or activate an account")
            changes[field] = fields.state(request.state)
        else:
            caller.require_operator("limits", "To change an account's limits")
            changes[field] = limit_fields.checked(request.limits)
    return changes


def _account(row: "asyncpg.Record") -> Account:
    return Account(
        id=row["id"],
        name=row["name"],
        labels=json.loads(row["labels"]),
        state=fields.STATES[row["state"]],
        limits=limit_fields.shown(row["limits"]),
        create_time=row["create_time"],
        erase_time=row["erase_time"],
    )
