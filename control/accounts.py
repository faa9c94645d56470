"""AccountService: who pays."""

import secrets
from typing import TYPE_CHECKING, Any

import grpc.aio
from uplion.control.v1 import account_pb2, account_service_pb2_grpc
from uplion.control.v1.account_pb2 import Account

from control import limits, requests
from control.invalidation import Invalidations
from control.store import Store
from control.updates import changed

if TYPE_CHECKING:
    import asyncpg

    Context = grpc.aio.ServicerContext[Any, Any]

_NAME_CHARACTERS = 100
_ID_ALPHABET = "0123456789abcdefghijkmnpqrstuvwxyz"
_UPDATABLE = ("state", "limits")


class AccountService(account_service_pb2_grpc.AccountServiceServicer):
    """Accounts in Postgres; a change reaches every authz at once."""

    def __init__(self, store: Store, invalidations: Invalidations) -> None:
        self._store = store
        self._invalidations = invalidations

    async def CreateAccount(  # noqa: N802  # the contract's name
        self, request: account_pb2.CreateAccountRequest, context: "Context"
    ) -> account_pb2.CreateAccountResponse:
        requests.caller(context)
        name = requests.text("name", request.name.strip(), least=1, most=_NAME_CHARACTERS)
        identifier = "acc_" + "".join(secrets.choice(_ID_ALPHABET) for _ in range(16))
        row = await self._store.create_account(
            identifier, name, limits.checked(request.limits), requests.request_id(request.request_id)
        )
        return account_pb2.CreateAccountResponse(account=_account(row))

    async def ListAccounts(  # noqa: N802  # the contract's name
        self, request: account_pb2.ListAccountsRequest, context: "Context"
    ) -> account_pb2.ListAccountsResponse:
        requests.caller(context)
        size = requests.page_size(request.page_size)
        rows = await self._store.list_accounts(size + 1, requests.read_position(request.page_token))
        response = account_pb2.ListAccountsResponse(accounts=[_account(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = requests.write_position(rows[size - 1]["create_time"], rows[size - 1]["id"])
        return response

    async def UpdateAccount(  # noqa: N802  # the contract's name
        self, request: account_pb2.UpdateAccountRequest, context: "Context"
    ) -> account_pb2.UpdateAccountResponse:
        requests.caller(context)
        identifier = requests.text("id", request.id, least=1, most=_NAME_CHARACTERS)
        row = await self._store.update_account(identifier, _changes(request))
        await self._invalidations.account(row["id"])
        return account_pb2.UpdateAccountResponse(account=_account(row))


def _changes(request: account_pb2.UpdateAccountRequest) -> dict[str, object]:
    """Columns and their new values."""
    changes: dict[str, object] = {}
    for field in changed(request, _UPDATABLE):
        if field == "state":
            changes[field] = requests.state(request.state)
        else:
            changes[field] = limits.checked(request.limits)
    return changes


def _account(row: "asyncpg.Record") -> Account:
    return Account(
        id=row["id"],
        name=row["name"],
        state=requests.STATES[row["state"]],
        create_time=row["create_time"],
        limits=limits.shown(row["limits"]),
    )
