"""Who may call an admin method: the scope that the contract declares for it, checked before the method runs.

A scope of one account ("admin:read", "admin:write") reaches the caller's own account only (Caller.account_filter).
"""

from __future__ import annotations  # grpc's classes are generic in the stubs only

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from common import admin_api, names
from common.errors import Reason, UplionError
from control.requests.caller import Caller

if TYPE_CHECKING:
    from control.requests.caller import Context

    Handler = grpc.RpcMethodHandler[Any, Any]
from rpc.interceptors import abort

_HEALTH = "/grpc.health.v1.Health/"


def admit(method: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Raises PERMISSION_DENIED unless the caller has the method's scope, or when the method declares none."""
    caller = Caller.from_metadata(metadata)
    least = admin_api.scopes().get(method)
    if caller.operator and least is not None:
        return
    if least is None or least not in caller.scopes:
        scope = least or names.SCOPE_ADMIN
        raise UplionError(Reason.PERMISSION_DENIED, f'This needs a key with the scope "{scope}".', scope=scope)


class ScopesInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call reach its method when its caller has the scope."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method: str = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(_HEALTH):
            return handler
        behavior: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if behavior is None:
            raise TypeError(f"{method}: no method of the admin API streams its requests")

        async def call(request: Any, context: Context) -> Any:
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
