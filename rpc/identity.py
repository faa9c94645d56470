"""Who calls: the identity of a call, proven before anything of the call is read."""

from __future__ import annotations  # grpc's classes are generic in the stubs only

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import Any, Protocol

import grpc
import grpc.aio

from common.errors import Reason, UplionError
from common.identity import Identity, UnprovenError
from rpc.interceptors import abort
from rpc.metrics import RPC_STRANGERS

logger = logging.getLogger(__name__)

HEALTH = "/grpc.health.v1.Health/"  # tells whether a service serves, and nothing else: open to whoever reaches it
_LOG_SECONDS = 1.0  # between two lines about calls that were refused: strangers must not fill a disk
_caller: ContextVar[Identity | None] = ContextVar("caller", default=None)  # each call runs in a task of its own


def caller() -> Identity:
    """Of the call that runs; raises PERMISSION_DENIED where its server has no IdentityInterceptor."""
    identity = _caller.get()
    if identity is None:
        raise _stranger()
    return identity


class Verifier(Protocol):
    """Verifies who calls. (credentials.identity_proof.IdentityProofs)"""

    def verify(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Identity:
        """Raises UnprovenError unless authz made the call's identity headers, for a call of this method."""


class IdentityInterceptor(grpc.aio.ServerInterceptor):
    """Refuses every call without a valid proof, whatever its method, before its message is read; must be the first."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._logged_at = float("-inf")

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method: str = handler_call_details.method
        if not method.startswith(HEALTH):
            try:
                _caller.set(self._verifier.verify(method, handler_call_details.invocation_metadata or ()))
            except UnprovenError as problem:
                RPC_STRANGERS.inc()
                self._log(method, problem)
                return _REFUSED
        return await continuation(handler_call_details)

    def _log(self, method: str, problem: UnprovenError) -> None:
        now = time.monotonic()
        if now - self._logged_at >= _LOG_SECONDS:
            self._logged_at = now
            logger.warning("a call without proof of its identity", extra={"method": method, "problem": str(problem)})


def _stranger() -> UplionError:
    return UplionError(Reason.PERMISSION_DENIED, "This call did not come through the gateway.")


async def _refuse(_: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await abort(context, _stranger())


# The one kind of handler that begins before a message has arrived.
_REFUSED: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(_refuse)
