"""What both surfaces share: who calls, how an answer is collected or relayed, what is said of a request at its end."""

import asyncio
import dataclasses
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeAlias

import grpc.aio
from uplion.dispatch.v1.run_pb2 import RunEvent
from uplion.inference.v1.sampling_pb2 import TokenUsage

from common import telemetry
from common.deltas import Delta
from common.errors import Reason, UplionError
from common.identity import Identity
from router import metrics
from router.answers import Answer, Unwritten
from router.dispatch.attempt_registry import AttemptRegistry
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.jobs import Delivery, Job
from router.dispatch.records import Record
from router.dispatch.releases import Releases
from router.dispatch.request_metrics import RequestMetrics
from router.settings import RouterSettings

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"  # generic in the stubs only


class Sink(Protocol):
    """Where a streamed answer goes. Writing raises UplionError(CANCELLED) when nobody reads any more."""

    async def deltas(self, deltas: Sequence[Delta]) -> None:
        """What is new, at most one delta for each choice."""

    async def keep_alive(self) -> None:
        """Nothing new for a while."""

    async def end(self, usage: TokenUsage) -> None:
        """The answer is complete."""


def caller(context: Context) -> Identity:
    """Who calls; raises PERMISSION_DENIED unless authz admitted the call."""
    identity = Identity.from_metadata(context.invocation_metadata() or ())
    if not identity.request_id:  # no edge in front, as in tests: the ledger still needs a unique key
        identity = dataclasses.replace(identity, request_id=str(uuid.uuid4()))
        telemetry.request_id.set(identity.request_id)
    return identity


async def write(context: Context, message: object) -> None:
    """One message of a stream. A write has one way to fail: the client is gone."""
    try:
        await context.write(message)
    except Exception as problem:  # the RPC boundary: grpc raises several internal types here
        raise UplionError(Reason.CANCELLED, "The client closed the connection.") from problem


class Front:
    """Carries requests between the surfaces and the dispatcher."""

    def __init__(
        self, dispatcher: Dispatcher, attempts: AttemptRegistry, releases: Releases, settings: RouterSettings
    ) -> None:
        self._dispatcher = dispatcher
        self._attempts = attempts
        self._releases = releases
        self._settings = settings
        self._measures = RequestMetrics()

    def begin(self, record: Record) -> None:
        """A call of a known caller starts; `end` must follow."""
        metrics.ROUTER_IN_FLIGHT.inc()

    def end(self, record: Record, error: UplionError | None) -> None:
        """Says once what became of the call: its slot's release, the usage event it owes, metrics, one log line."""
        metrics.ROUTER_IN_FLIGHT.dec()
        record.ended_at = time.monotonic()
        self._releases.ended(record.identity)
        self._attempts.request_ended(record, error)
        status = "ok" if error is None else error.reason.name
        self._measures.observe(record, status)
        if logger.isEnabledFor(logging.INFO):
            logger.info("request", extra=record.facts(status))

    def end_unstarted(self, record: Record, error: UplionError) -> None:
        """The same for an admitted call whose handler never started."""
        self.begin(record)
        self.end(record, error)

    def seconds(self, identity: Identity, context: Context) -> float:
        """How long the whole request may take: the caller's limit, or less where the call itself says so."""
        limit = identity.deadline_seconds or self._settings.deadline_seconds
        rest = context.time_remaining()
        return limit if rest is None else min(limit, max(rest, 0.0))

    def _run(self, job: Job, record: Record, context: Context, delivery: Delivery) -> AsyncGenerator[RunEvent, None]:
        return self._dispatcher.run(job, record, self.seconds(job.identity, context), delivery)

    async def collect(self, job: Job, record: Record, context: Context) -> Answer:
        """The whole answer."""
        delivery = Delivery.ONCE if job.short else Delivery.WHOLE
        answer = Answer(job.choices)
        async with aclosing(self._run(job, record, context, delivery)) as events:
            async for event in events:
                answer.add(event)
        return answer

    async def relay(self, job: Job, record: Record, context: Context, sink: Sink) -> None:
        """Streams the answer into the sink as it is made, merged where the sink is slower than the engine.

        The engine is read in a task of its own, so that a slow client does not hold a worker's slot (up to
        `pending_bytes`), and a silent engine does not leave the client without a sign of life.
        """
        unwritten = Unwritten(job.choices, self._settings.pending_bytes)
        failed: UplionError | None = None
        async with asyncio.TaskGroup() as tasks:
            pump = tasks.create_task(
                _pump(self._run(job, record, context, Delivery.STREAM), unwritten), name="read engine"
            )
            try:
                await self._drain(unwritten, sink)
            except UplionError as error:
                failed = error
            finally:
                pump.cancel()
        if failed is not None:
            raise failed

    async def _drain(self, unwritten: Unwritten, sink: Sink) -> None:
        loop = asyncio.get_running_loop()
        interval = self._settings.stream_keepalive_seconds
        wrote_at = loop.time()
        timer: asyncio.TimerHandle

        def tick() -> None:
            nonlocal timer
            unwritten.wake()
            timer = loop.call_later(interval, tick)

        timer = loop.call_later(interval, tick)
        try:
            while True:
                await unwritten.wait()
                deltas = unwritten.take()
                if deltas:
                    await sink.deltas(deltas)
                elif unwritten.ended:
                    break
                elif loop.time() - wrote_at >= interval / 2:
                    await sink.keep_alive()
                else:
                    continue
                wrote_at = loop.time()
        finally:
            timer.cancel()
        if unwritten.error is not None:
            raise unwritten.error
        await sink.end(unwritten.usage or TokenUsage())


async def _pump(events: AsyncGenerator[RunEvent, None], unwritten: Unwritten) -> None:
    try:
        async with aclosing(events):
            async for event in events:
                unwritten.put(event)
                if unwritten.is_full:
                    await unwritten.room()
        unwritten.end()
    except UplionError as error:
        unwritten.end(error)
    except Exception:  # a task boundary
        logger.exception("request failed")
        unwritten.end(internal_error())


def internal_error() -> UplionError:
    """What a client may know of our own bug."""
    return UplionError(Reason.INTERNAL, f"Internal error; request {telemetry.request_id.get() or 'unknown'}.")
