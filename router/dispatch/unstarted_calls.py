"""Calls that authz admitted and whose handler never started: the client left, or sent a message that cannot be parsed.

Their reservation and their slot must be given back like all others. The gRPC library creates a task when a call's
headers arrive and runs the handler in it once the message is there; what ends in between is seen here only.
"""

from __future__ import annotations  # grpc's classes are generic in the stubs only

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from common import operations
from common.errors import Reason, UplionError
from common.identity import Identity
from router.dispatch.records import Record
from rpc.identity import caller
from rpc.interceptors import UNREADABLE

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class UnstartedCalls(grpc.aio.ServerInterceptor):
    """Watches the calls of the operations that authz reserves for; follows the one that knows the caller."""

    def __init__(self, account: Callable[[Record, UplionError], None]) -> None:
        self._account = account  # for a call that ended unstarted

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[RequestT, ResponseT] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[RequestT, ResponseT] | None:
        operation = operations.BY_RPC.get(handler_call_details.method)
        if operation is None or not operation.reserves:
            return await continuation(handler_call_details)
        call = _Call(operation, caller(), self._account)
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(call.ended)
        handler = await continuation(handler_call_details)
        return None if handler is None else call.watched(handler)


class _Call:
    """One call, from its headers until its handler starts."""

    __slots__ = ("_account", "_identity", "_operation", "_started")

    def __init__(
        self,
        operation: operations.Operation,
        identity: Identity,
        account: Callable[[Record, UplionError], None],
    ) -> None:
        self._operation = operation
        self._identity = identity
        self._account = account
        self._started = False

    def watched(
        self, handler: grpc.RpcMethodHandler[RequestT, ResponseT]
    ) -> grpc.RpcMethodHandler[RequestT, ResponseT]:
        """The same handler; once it is called with a message, it accounts for the call."""
        streams = handler.response_streaming
        behavior: Any = handler.unary_stream if streams else handler.unary_unary  # a coroutine function in grpc.aio

        async def start(request: RequestT, context: grpc.aio.ServicerContext[RequestT, ResponseT]) -> ResponseT:
            self._started = request is not UNREADABLE
            response: ResponseT = await behavior(request, context)
            return response

        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        return make(start, handler.request_deserializer, handler.response_serializer)

    def ended(self, task: asyncio.Task[object]) -> None:
        """The call is over."""
        if self._started:
            return
        if task.cancelling():  # the library swallows the cancellation
            error = UplionError(Reason.CANCELLED, "The client closed the connection.")
        else:
            error = UplionError(Reason.INVALID_REQUEST, "The call ended before it was a whole request.")
        self._account(Record(self._identity, self._operation), error)
