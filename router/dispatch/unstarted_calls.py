"""Calls that authz admitted and whose handler never began: the client left, or sent a message nobody can read.

Their reservation and their slot must be given back like all others. The gRPC library creates a task when a call's
headers arrive and runs the handler in it once the message is there; what ends in between is seen here only.
"""

from __future__ import annotations  # grpc's classes are generic in the stubs only

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from common import operations
from common.errors import Reason, UplionError
from common.identity import Identity
from router.dispatch.jobs import Operation
from router.dispatch.records import Record


@dataclass(slots=True, eq=False)
class _Admission:
    """One call, from its headers on."""

    operation: operations.Operation
    metadata: Any
    begun: bool = False


_current: ContextVar[_Admission | None] = ContextVar("admission", default=None)


def begun() -> None:
    """The current call's handler accounts for it from now on."""
    admission = _current.get()
    if admission is not None:
        admission.begun = True


class UnstartedCalls(grpc.aio.ServerInterceptor):
    """Watches the calls of the methods that authz reserves for; must be the first interceptor."""

    def __init__(self, ended_unbegun: Callable[[Record, UplionError], None]) -> None:
        self._ended_unbegun = ended_unbegun

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        task = asyncio.current_task()
        operation = operations.BY_RPC.get(handler_call_details.method)
        if task is not None and operation is not None and operation.reserves:
            admission = _Admission(operation, handler_call_details.invocation_metadata)
            _current.set(admission)

            def ended(call: asyncio.Task[Any]) -> None:
                if not admission.begun:
                    self._account(admission, cancelled=call.cancelling() > 0)  # the library swallows it

            task.add_done_callback(ended)
        return await continuation(handler_call_details)

    def _account(self, admission: _Admission, *, cancelled: bool) -> None:
        try:
            identity = Identity.from_metadata(admission.metadata or ())
        except UplionError:
            return  # never admitted
        if cancelled:
            error = UplionError(Reason.CANCELLED, "The client closed the connection.")
        else:
            error = UplionError(Reason.INVALID_REQUEST, "The call ended before it was a whole request.")
        called = admission.operation
        assert called.capability is not None  # what is reserved for runs a model
        self._ended_unbegun(Record(identity, Operation(called.capability.value), called.dialect.value), error)
