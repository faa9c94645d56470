"""The interceptor around every RPC: it sets the request's context and translates errors.

grpc.aio sends the text of an unknown exception to the client; here it becomes INTERNAL with the request id only.
"""

from __future__ import annotations  # grpc's classes are generic in the stubs only

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from common import names, telemetry
from common.errors import STATUS_DETAILS_METADATA, Reason, UplionError, forget_frames, grpc_status

logger = logging.getLogger(__name__)

_PLAIN = "[]/ "  # stays as it is in a header


class MaskingInterceptor(grpc.aio.ServerInterceptor):
    """Wraps each handler once and keeps it: looking one up again costs a dictionary access."""

    def __init__(self) -> None:
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any] | None] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        found = self._wrapped.get(method)
        if found is None:
            handler = await continuation(handler_call_details)
            if handler is None:  # an unknown method: grpc answers UNIMPLEMENTED, and a flood of them fills no cache
                return None
            found = self._wrapped[method] = _wrap(handler)
        return found


UNREADABLE = object()  # stands for a message that cannot be parsed


def _lenient(deserializer: Any) -> Any:
    """A deserializer that does not raise: the gRPC library would send the client the text of the exception."""
    if deserializer is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError:
            return UNREADABLE

    return read


def _wrap(handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
    if handler.request_streaming:
        return handler  # only reflection and such; none of our own methods streams requests
    if handler.response_streaming:
        # A coroutine writes through its context, which costs a message less than a generator inside a generator.
        wrap = _unary if inspect.iscoroutinefunction(handler.unary_stream) else _streaming
        return grpc.unary_stream_rpc_method_handler(
            wrap(handler.unary_stream), _lenient(handler.request_deserializer), handler.response_serializer
        )
    return grpc.unary_unary_rpc_method_handler(
        _unary(handler.unary_unary), _lenient(handler.request_deserializer), handler.response_serializer
    )


def _enter(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Each call runs in a task of its own, so what is set here ends with it."""
    for name, value in context.invocation_metadata() or ():
        if name == names.HEADER_REQUEST_ID:
            telemetry.request_id.set(str(value))
        elif name == telemetry.TRACEPARENT:
            telemetry.traceparent.set(telemetry.incoming({name: str(value)}))


def _unary(behavior: Any) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        _enter(context)
        try:
            if request is UNREADABLE:
                raise UplionError(Reason.INVALID_REQUEST, "The request is not a valid message.")
            return await behavior(request, context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as problem:  # the RPC boundary
            request = None  # grpc.aio keeps this frame until the garbage is collected
            await abort(context, problem)

    return call


def _streaming(behavior: Any) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        _enter(context)
        try:
            if request is UNREADABLE:
                raise UplionError(Reason.INVALID_REQUEST, "The request is not a valid message.")
            async for message in behavior(request, context):
                yield message
        except (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit):
            raise
        except Exception as problem:  # the RPC boundary
            request = None  # grpc.aio keeps this frame until the garbage is collected
            await abort(context, problem)

    return call


def internal_error() -> UplionError:
    """What a client may know of our own bug."""
    return UplionError(Reason.INTERNAL, f"Internal error; request {telemetry.request_id.get() or 'unknown'}.")


async def abort(context: grpc.aio.ServicerContext[Any, Any], problem: Exception) -> None:
    """Ends the call with what the client may know of the problem; does not return."""
    if not isinstance(problem, UplionError):
        logger.error("request failed", exc_info=problem)
        forget_frames(problem)
        problem = internal_error()
    forget_frames(problem)  # grpc.aio keeps what ended a call in a cycle with the call's frames
    status = grpc_status(problem)
    details: list[tuple[str, str | bytes]] = [(STATUS_DETAILS_METADATA, status.SerializeToString())]
    if problem.param is not None:
        details.append((names.HEADER_PARAM, quote(problem.param, safe=_PLAIN)))
    await context.abort(problem.reason.grpc_code, problem.message, tuple(details))
