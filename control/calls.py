"""The interceptor around every admin method: whether its caller may call it, and what the call asks.

A request comes as the contract's message from a gRPC client, or as an HttpBody where the edge received HTTP. Either way
what the contract does not know is refused, before the method runs.
"""

from __future__ import annotations  # grpc's classes are generic in the stubs only

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from common import admin_api
from common.errors import Reason, UplionError
from control.http.request import HttpRequest
from control.requests import unknown_fields
from control.requests.caller import Caller
from control.requests.permissions import admit
from rpc.identity import HEALTH
from rpc.interceptors import UNREADABLE, abort

if TYPE_CHECKING:
    from control.requests.caller import Context

    Handler = grpc.RpcMethodHandler[Any, Any]


class AdminCalls(grpc.aio.ServerInterceptor):
    """Lets a call reach its method when its caller has the scope, and its request is one."""

    def __init__(self) -> None:
        self._routes = {route.rpc: route for route in admin_api.routes()}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method: str = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(HEALTH):
            return handler
        behavior: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary
        if behavior is None:
            raise TypeError(f"{method}: no method of the admin API streams its requests")
        route, read = self._routes[method], handler.request_deserializer

        async def call(data: bytes, context: Context) -> Any:
            metadata = dict(context.invocation_metadata() or ())
            try:
                admit(method, Caller.current())
                http = HttpRequest.of(metadata)
                request = _native(read, data) if http is None else http.message(route, data)
            except Exception as problem:  # the RPC boundary: what is raised here, no interceptor within sees
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
        return wrap(call, None, handler.response_serializer)


def _native(read: Any, data: bytes) -> Message:
    """The message of a gRPC client. Raises INVALID_REQUEST."""
    message: Message = read(data)
    if message is UNREADABLE:
        raise UplionError(Reason.INVALID_REQUEST, "The request is not a valid message.")
    unknown_fields.refuse(message)
    return message
