"""Who may call what: one table of every admin method and its scope, asked before a method runs."""

from __future__ import annotations  # grpc's classes are generic in the stubs only

import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable
from enum import Enum
from typing import Any

import grpc
import grpc.aio

from common import names
from common.errors import Reason, UplionError
from common.interceptors import abort
from control.requests.caller import Caller

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


def admit(method: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Raises PERMISSION_DENIED unless the caller has the method's scope; a method outside the table is for nobody."""
    who = Caller.from_metadata(metadata)
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
