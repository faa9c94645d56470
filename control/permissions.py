"""Who may call what: one table of every admin method and its scope, asked before a method runs."""

from __future__ import annotations  # grpc's classes are generic in the stubs only

import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import grpc
import grpc.aio

from common import names
from common.errors import Reason, UplionError
from common.identity import Identity
from common.interceptors import abort

_PACKAGE = "/uplion.control.v1."
_HEALTH = "/grpc.health.v1.Health/"


class Need(Enum):
    """Scopes of which any one is enough; the value is the least."""

    READ = names.SCOPE_ADMIN_READ
    WRITE = names.SCOPE_ADMIN_WRITE
    OPERATE = names.SCOPE_ADMIN

    def met_by(self, scopes: Collection[str]) -> bool:
        return self.value in scopes or names.SCOPE_ADMIN in scopes


# READ and WRITE reach the caller's own account only (Caller.account_filter); what has no account is the operator's.
NEEDS: dict[str, dict[str, Need]] = {
    "AccountService": {
        "CreateAccount": Need.OPERATE,
        "EraseAccount": Need.OPERATE,
        "GetAccount": Need.READ,
        "ListAccounts": Need.READ,
        "UpdateAccount": Need.WRITE,
    },
    "AlertService": {
        "ListAlerts": Need.READ,
    },
    "KeyService": {
        "CreateKey": Need.WRITE,
        "DeleteKey": Need.WRITE,
        "GetKey": Need.READ,
        "ListKeys": Need.READ,
        "RevokeKey": Need.WRITE,
        "RotateKey": Need.WRITE,
        "UpdateKey": Need.WRITE,
    },
    "LedgerService": {
        "ExportLedger": Need.READ,
        "ListLedgerKeys": Need.READ,
    },
    "ModelService": {
        "ApplyModel": Need.OPERATE,
        "DeleteModel": Need.OPERATE,
        "ListModels": Need.OPERATE,  # a manifest may hold an upstream's key
    },
    "PriceService": {
        "CreatePrice": Need.OPERATE,
        "ListPrices": Need.READ,
    },
    "ProjectService": {
        "CreateProject": Need.WRITE,
        "GetProject": Need.READ,
        "ListProjects": Need.READ,
        "UpdateProject": Need.WRITE,
    },
    "ReconciliationService": {
        "GetReconciliation": Need.OPERATE,  # of all accounts
        "RunReconciliation": Need.OPERATE,
    },
    "RequestService": {
        "GetRequest": Need.READ,
    },
    "StatementService": {
        "GetStatement": Need.READ,
    },
    "UsageService": {
        "ExportUsage": Need.READ,
        "QueryMargin": Need.OPERATE,  # of models, which all accounts share
        "QueryUsage": Need.READ,
    },
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls an admin method, after its scope was checked."""

    account: str
    key: str
    scopes: frozenset[str]

    @property
    def operator(self) -> bool:
        """The platform's operator reaches every account."""
        return names.SCOPE_ADMIN in self.scopes

    @property
    def within(self) -> str | None:
        """The one account whose objects exist for this caller; None: all."""
        return None if self.operator else self.account

    def account_filter(self, asked: str) -> str | None:
        """The account a list is about, None for all; NOT_FOUND for one that does not exist for this caller."""
        if self.operator:
            return asked or None
        if asked and asked != self.account:
            raise UplionError(Reason.NOT_FOUND, f"There is no account {asked!r}.", param="account")
        return self.account

    def require_operator(self, param: str, what: str) -> None:
        """Raises PERMISSION_DENIED unless it is the operator who asks for `what`."""
        if not self.operator:
            raise UplionError(
                Reason.PERMISSION_DENIED, f'{what} needs a key with the scope "{names.SCOPE_ADMIN}".', param=param
            )


def caller(metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
    """Raises PERMISSION_DENIED when the call did not pass the gateway."""
    identity = Identity.from_metadata(metadata)
    return Caller(identity.account, identity.key, frozenset(identity.scopes))


def admit(method: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Raises PERMISSION_DENIED unless the caller has the method's scope; a method outside the table is for nobody."""
    who = caller(metadata)
    service, _, name = method.removeprefix(_PACKAGE).partition("/")
    need = NEEDS.get(service, {}).get(name)
    if need is None or not need.met_by(who.scopes):
        scope = need.value if need else names.SCOPE_ADMIN
        raise UplionError(Reason.PERMISSION_DENIED, f'This needs a key with the scope "{scope}".', scope=scope)


class ScopesInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call reach its method when its caller has the scope."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method: str = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(_HEALTH):
            return handler
        behavior: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if behavior is None:
            raise TypeError(f"{method}: no method of the admin API streams its requests")

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                admit(method, ((name, value) for name, value in context.invocation_metadata() or ()))
            except UplionError as problem:
                await abort(context, problem)
            answer = behavior(request, context)
            if inspect.isawaitable(answer):
                return await answer
            async for message in answer:
                await context.write(message)
            return None

        wrap = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
        return wrap(call, handler.request_deserializer, handler.response_serializer)
