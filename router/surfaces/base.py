"""The life of every call, whatever its dialect: it begins, is recorded, has its error translated, and ends."""

import asyncio
import logging
import time
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc.aio

from common import telemetry
from common.errors import Reason, UplionError, forget_frames
from common.operations import Operation
from router import metrics
from router.dispatch.accounting.attempt_registry import AttemptRegistry
from router.dispatch.accounting.releases import Releases
from router.dispatch.records import Record
from router.dispatch.request_metrics import RequestMetrics
from router.surfaces.arrivals import Arrivals
from router.surfaces.requests import name_input
from rpc.identity import caller
from rpc.interceptors import internal_error

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic in the stubs only
ResultT_co = TypeVar("ResultT_co", covariant=True)
ResultT = TypeVar("ResultT")


class Call(Protocol[ResultT_co]):
    """One call in its dialect."""

    async def answer(self, record: Record) -> ResultT_co:
        """Serves the call; raises UplionError."""

    async def refuse(self, error: UplionError) -> ResultT_co:
        """Gives the client the error in its dialect: as an answer, at the end of a stream, or by raising it."""


async def write(context: Context, message: object) -> None:
    """One message of a stream. A write has one way to fail: the client is gone."""
    try:
        await context.write(message)
    except Exception as problem:  # the RPC boundary: grpc raises several internal types here
        raise _cancelled() from problem


class CallLifecycle:
    """Accounts for each call of a known caller exactly once, however it ends."""

    def __init__(self, attempts: AttemptRegistry, releases: Releases, arrivals: Arrivals) -> None:
        self._attempts = attempts
        self._arrivals = arrivals
        self._releases = releases
        self._metrics = RequestMetrics()

    async def serve(self, operation: Operation, context: Context, call: Call[ResultT]) -> ResultT:
        """Carries one call from its caller's identity to its log line. `operation` runs a model."""
        record = Record(caller(), operation)
        error: UplionError | None = None
        self._arrivals.add(record.identity.reservation)
        self._begin()
        try:
            with telemetry.span(f"router.{record.capability.value}"):
                try:
                    result = await call.answer(record)
                except UplionError as problem:
                    error = problem
                    name_input(error, operation)
                except Exception:  # the RPC boundary: each dialect has a form for our own bugs too
                    logger.exception("request failed")
                    error = internal_error()
                if error is not None:
                    if error.reason is not Reason.ALREADY_EXISTS:
                        await self._releases.freed(record)
                    result = await call.refuse(error)
        except asyncio.CancelledError:
            error = _cancelled()
            raise
        finally:
            self._end(record, error)
            forget_frames(error)
        await asyncio.sleep(0)  # uvloop writes at the end of a turn: the receipt is to leave before the call's end does
        return result

    def end_unstarted(self, record: Record, error: UplionError) -> None:
        """Accounts for an admitted call whose handler never started."""
        self._begin()
        self._end(record, error)

    def _begin(self) -> None:
        metrics.ROUTER_IN_FLIGHT.inc()

    def _end(self, record: Record, error: UplionError | None) -> None:
        """Releases the call's slot, publishes the usage event where it is the router's, and writes metrics and log."""
        metrics.ROUTER_IN_FLIGHT.dec()
        record.ended_at = time.monotonic()
        if error is None or error.reason is not Reason.ALREADY_EXISTS:  # else the call that it repeats does all this
            self._releases.ended(record)
            self._attempts.request_ended(record, None if error is None else error.reason)
        status = "ok" if error is None else error.reason.name
        self._metrics.observe(record, status)
        if logger.isEnabledFor(logging.INFO):
            logger.info("request", extra=record.facts(status))


def _cancelled() -> UplionError:
    return UplionError(Reason.CANCELLED, "The client closed the connection.")
