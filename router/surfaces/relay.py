"""Brings the dispatcher's events to a client: collected into a whole answer, or written as they are made."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from uplion.inference.v1.sampling_pb2 import TokenUsage

from common.deltas import Delta
from common.errors import UplionError
from common.identity import Identity
from router.dispatch.accounting.releases import Releases
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.jobs import Delivery, Job
from router.dispatch.records import Record
from router.dispatch.runs import AnswerEvent
from router.settings import RouterSettings
from router.surfaces.base import Context
from router.surfaces.response_buffers import StreamBuffer, WholeAnswer
from router.surfaces.turns import Turns


class Sink(Protocol):
    """Where a streamed answer goes. Writing raises UplionError(CANCELLED) once the client is gone."""

    async def deltas(self, deltas: Sequence[Delta]) -> None:
        """What is new, at most one delta for each choice."""

    async def keep_alive(self) -> None:
        """Nothing new for a while."""

    async def end(self, usage: TokenUsage) -> None:
        """The answer is complete."""


class Relay:
    """Runs jobs for the surfaces, within the time that caller and call allow."""

    def __init__(self, dispatcher: Dispatcher, releases: Releases, settings: RouterSettings) -> None:
        self._dispatcher = dispatcher
        self._releases = releases
        self._settings = settings
        self._turns = Turns()

    async def collect(self, job: Job, record: Record, context: Context) -> WholeAnswer:
        """The whole answer."""
        delivery = Delivery.ONCE if job.short else Delivery.WHOLE
        answer = WholeAnswer(job.choices)
        async with aclosing(self._run(job, record, context, delivery)) as events:
            async for event in events:
                answer.add(event)
        await self._releases.freed(record)
        return answer

    async def stream(self, job: Job, record: Record, context: Context, sink: Sink) -> None:
        """Writes the answer into the sink as it is made, merged where the sink is slower than the engine.

        The engine is read in a task of its own, so that a slow client does not hold a worker's slot (up to
        `pending_bytes`), and a silent engine does not leave the client without a sign of life.
        """
        buffer = StreamBuffer(job.choices, self._settings.pending_bytes)
        failed: UplionError | None = None
        async with asyncio.TaskGroup() as tasks:
            events = self._run(job, record, context, Delivery.STREAM)
            pump = tasks.create_task(self._pump(events, buffer), name="read engine")
            try:
                await self._drain(buffer, sink, record)
            except UplionError as error:
                failed = error
            finally:
                pump.cancel()
        if failed is not None:
            raise failed

    def _run(self, job: Job, record: Record, context: Context, delivery: Delivery) -> AsyncGenerator[AnswerEvent, None]:
        return self._dispatcher.run(job, record, self._seconds(job.identity, context), delivery)

    def _seconds(self, identity: Identity, context: Context) -> float:
        """How long the whole request may take: the caller's limit, or less where the call itself says so."""
        limit = identity.deadline_seconds or self._settings.deadline_seconds
        rest = context.time_remaining()
        return limit if rest is None else min(limit, max(rest, 0.0))

    async def _drain(self, buffer: StreamBuffer, sink: Sink, record: Record) -> None:
        loop = asyncio.get_running_loop()
        interval = self._settings.stream_keepalive_seconds
        wrote_at = loop.time()
        timer: asyncio.TimerHandle

        def tick() -> None:
            nonlocal timer
            buffer.wake()
            timer = loop.call_later(interval, tick)

        timer = loop.call_later(interval, tick)
        try:
            while True:
                await buffer.wait()
                await self._turns.enter()
                deltas = buffer.take()
                if deltas:
                    await sink.deltas(deltas)
                    record.given(deltas)
                elif buffer.ended:
                    break
                elif loop.time() - wrote_at >= interval / 2:
                    await sink.keep_alive()
                else:
                    continue
                wrote_at = loop.time()
        finally:
            timer.cancel()
        if buffer.error is not None:
            raise buffer.error
        await self._releases.freed(record)
        await sink.end(buffer.usage or TokenUsage())

    async def _pump(self, events: AsyncGenerator[AnswerEvent, None], buffer: StreamBuffer) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    buffer.put(event)
                    if buffer.is_full:
                        await buffer.room()
                    await self._turns.enter()
            buffer.end()
        except UplionError as error:
            buffer.end(error)
