"""AccountService: who pays."""

import secrets
from typing import TYPE_CHECKING, Any

import grpc.aio
from uplion.control.v1 import account_pb2, account_service_pb2_grpc
from uplion.control.v1.account_pb2 import Account, Limits, ResourceState

from common.errors import Reason, UplionError
from control import requests
from control.invalidation import Invalidations
from control.store import Store

if TYPE_CHECKING:
    import asyncpg

    Context = grpc.aio.ServicerContext[Any, Any]

_NAME_CHARACTERS = 100
_ID_ALPHABET = "0123456789abcdefghijkmnpqrstuvwxyz"
STATES = {
    "active": ResourceState.RESOURCE_STATE_ACTIVE,
    "suspended": ResourceState.RESOURCE_STATE_SUSPENDED,
    "revoked": ResourceState.RESOURCE_STATE_REVOKED,
}


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
            identifier, name, requests.limits(request.limits), requests.request_id(request.request_id)
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
        if request.state == ResourceState.RESOURCE_STATE_REVOKED:
            raise requests.invalid("state", "an account is not revoked but suspended")
        states = {value: name for name, value in STATES.items()}
        if request.state and request.state not in states:
            raise requests.invalid("state", "is not a known state")
        if not request.id:
            raise UplionError(Reason.INVALID_REQUEST, "id: must be set", param="id")
        row = await self._store.update_account(
            requests.text("id", request.id, most=_NAME_CHARACTERS),
            states.get(request.state),
            requests.limits(request.limits) if request.HasField("limits") else None,
        )
        await self._invalidations.account(row["id"])
        return account_pb2.UpdateAccountResponse(account=_account(row))


def stored_limits(row: "asyncpg.Record") -> Limits | None:
    """The limits of an account's or key's row; None when it has none."""
    if row["requests_per_minute"] is None and row["token_budget"] is None:
        return None
    return Limits(requests_per_minute=row["requests_per_minute"], token_budget=row["token_budget"])


def _account(row: "asyncpg.Record") -> Account:
    return Account(
        id=row["id"],
        name=row["name"],
        state=STATES[row["state"]],
        limits=stored_limits(row),
        create_time=row["create_time"],
    )
