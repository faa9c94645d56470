"""The usage events a router owes: for attempts that no worker can account for. They never delay an answer."""

import asyncio
import logging
from collections import deque
from typing import Protocol

import nats.errors
from uplion.billing.v1.usage_event_pb2 import UsageEvent

from common import metrics, names

logger = logging.getLogger(__name__)

_BATCH = 64
_RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0)
_PUBLISH_SECONDS = 2.0


class Publishing(Protocol):
    """What the reporter needs of the bus."""

    async def publish(self, subject: str, payload: bytes, *, message_id: str = "", timeout: float = ...) -> None:
        """Returns once the stream has it."""


class UsageReporter:
    """Holds events until the USAGE stream has acknowledged them; `run` is its one task."""

    def __init__(self, bus: Publishing, capacity: int) -> None:
        self._bus = bus
        self._capacity = capacity
        self._events: deque[UsageEvent] = deque()
        self._sending = 0
        self._more = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def report(self, event: UsageEvent) -> None:
        """Takes an event; returns at once."""
        if len(self._events) >= self._capacity:
            lost = self._events.popleft()
            metrics.ROUTER_USAGE_LOST.inc()
            logger.error("usage event lost: JetStream was away too long", extra={"lost_request_id": lost.request_id})
        self._events.append(event)
        self._empty.clear()
        self._more.set()

    async def run(self) -> None:
        """Publishes for ever; an event that fails is tried again until it is acknowledged."""
        failures = 0
        while True:
            await self._more.wait()
            self._more.clear()
            while self._events:
                batch = [self._events.popleft() for _ in range(min(_BATCH, len(self._events)))]
                failed: list[UsageEvent] = []
                async with asyncio.TaskGroup() as tasks:
                    for event in batch:
                        tasks.create_task(self._publish(event, failed), name="usage event")
                self._events.extendleft(reversed(failed))
                if failed:
                    await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                    failures += 1
                elif failures:
                    failures = 0
            self._empty.set()

    async def _publish(self, event: UsageEvent, failed: list[UsageEvent]) -> None:
        try:
            await self._bus.publish(
                names.usage_subject(event.model),
                event.SerializeToString(),
                message_id=names.attempt_id(event.request_id, event.attempt),
                timeout=_PUBLISH_SECONDS,
            )
        except (nats.errors.Error, TimeoutError, ConnectionError) as problem:
            failed.append(event)
            logger.warning("usage event not published yet", extra={"problem": repr(problem)})

    async def drain(self, seconds: float) -> None:
        """Waits until everything reported is acknowledged; says so if that takes too long."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            logger.error("usage events lost at exit: JetStream is away", extra={"count": len(self._events)})
