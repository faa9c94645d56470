"""The outbox: usage events on their way into the USAGE stream. None is dropped because the broker is away.

An event is published directly. When the stream does not acknowledge it (no answer in time, a refusal, no connection),
it goes into the spool, and so does every later one until the stream acknowledges something again; then the spool is
published. An event is safe once the stream has acknowledged it or the spool has it on disk. It may arrive twice: its
id, known to the stream and unique in the ledger, makes that harmless.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
from uplion.billing.v1.usage_event_pb2 import UsageEvent

from common import names
from common.lifecycle import report_trouble, run_forever
from messaging import metrics
from messaging.connection import Connection
from messaging.inbox import Inbox
from messaging.spool import Record, Spool
from messaging.stream_publisher import OnAnswer, Parcel, StreamPublisher

logger = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS = 0.2
_LONGEST_RETRY_SECONDS = 2.0
_LOOK_SECONDS = 5.0  # between looks for what ended processes have left
_REPUBLISHED_AT_ONCE = 256
_SPOOLED_AT_ONCE = 1000
_HIGH_WATER = 0.8  # of the spool: beyond it nothing new should be begun

OnSafe = Callable[[], None]


class _Item(NamedTuple):
    """A parcel that is not safe yet, and what to call when it is."""

    parcel: Parcel
    on_safe: OnSafe | None


class Outbox:
    """Takes events at any time, and never waits. Made by `open`; `run` must run for as long as events come."""

    def __init__(
        self, connection: Connection, inbox: Inbox, spool: Spool | None, high_water_bytes: int, capacity: int
    ) -> None:
        self._stream = StreamPublisher(connection, inbox, self._judge)
        self._spool = spool
        self._high_water_bytes = high_water_bytes
        self._capacity = capacity
        self._ready: deque[_Item] = deque()
        self._unsafe: deque[_Item] = deque()  # neither acknowledged by the stream nor in the spool
        self._open = 0  # items that are not safe
        self._more, self._not_sent, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._spool_fails = False
        self._spooled_bytes = 0
        self.blocked = False  # no work may be begun that could not be billed
        self.turned = asyncio.Event()  # set when `blocked` changes; whoever waits for it clears it

    @classmethod
    @asynccontextmanager
    async def open(
        cls, connection: Connection, inbox: Inbox, folder: Path | None, *, spool_bytes: int, capacity: int
    ) -> AsyncIterator["Outbox"]:
        """What is not safe at the end of the block goes into the spool.

        Without a folder there is no spool: then events wait in memory. At most `capacity` do so in any case.
        """
        spool = None if folder is None else await asyncio.to_thread(Spool, folder, spool_bytes)
        outbox = cls(connection, inbox, spool, int(spool_bytes * _HIGH_WATER), capacity)
        try:
            yield outbox
        finally:
            outbox._stream.close()
            await asyncio.to_thread(outbox._close)

    async def run(self) -> None:
        """Publishes until it is cancelled."""
        tasks = {
            "usage events out": self._publish_new,
            "usage events out of the spool": self._publish_spooled,
        }
        if self._spool is not None:
            tasks["usage events into the spool"] = partial(self._store, self._spool)
        await run_forever(tasks)

    def put(self, event: UsageEvent, on_safe: OnSafe | None = None, *, traceparent: str = "") -> None:
        """Takes an event; `on_safe` is called once it is acknowledged or on disk."""
        parcel = Parcel(
            names.usage_subject(event.model),
            names.attempt_id(event.request_id, event.attempt),
            traceparent,
            event.SerializeToString(),
        )
        self._open += 1
        self._idle.clear()
        self._ready.append(_Item(parcel, on_safe))
        self._more.set()

    async def drain(self, seconds: float) -> None:
        """Waits until every event is safe, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    # --- to the stream -------------------------------------------------------------------------------------------

    async def _publish_new(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while self._ready:
                item = self._ready.popleft()
                if self._stream.trusted:
                    self._stream.publish(item.parcel, partial(self._answered, item))
                else:
                    self._not_acknowledged(item)

    def _answered(self, item: _Item, acknowledged: bool) -> None:
        if acknowledged:
            self._safe(item)
        else:
            self._not_acknowledged(item)

    def _safe(self, item: _Item) -> None:
        self._open -= 1
        if not self._open:
            self._idle.set()
        if item.on_safe is not None:
            item.on_safe()

    def _not_acknowledged(self, item: _Item) -> None:
        self._stream.distrust()
        metrics.USAGE_NOT_TAKEN.inc()
        if len(self._unsafe) >= self._capacity:
            lost = self._unsafe.popleft()
            metrics.USAGE_LOST.inc()
            logger.error("usage event lost: no room to keep it", extra={"lost_event": lost.parcel.id})
            self._safe(lost)
        self._unsafe.append(item)
        self._not_sent.set()

    def _judge(self) -> None:
        """Sets `blocked` to whether work may be begun."""
        full = self._spooled_bytes > self._high_water_bytes
        blocked = self._stream.blocked or self._spool_fails or full
        if blocked != self.blocked:
            self.blocked = blocked
            report_trouble("metering", "usage events are not stored, so no work is begun" if blocked else "")
            logger.log(logging.ERROR if blocked else logging.INFO, "metering", extra={"blocked": blocked})
            self.turned.set()

    # --- into the spool ------------------------------------------------------------------------------------------

    async def _store(self, spool: Spool) -> None:
        while True:
            await self._not_sent.wait()
            self._not_sent.clear()
            while self._unsafe:
                items = [self._unsafe.popleft() for _ in range(min(_SPOOLED_AT_ONCE, len(self._unsafe)))]
                try:
                    await asyncio.to_thread(self._append, spool, items)
                except BaseException as problem:
                    self._unsafe.extendleft(reversed(items))
                    if not isinstance(problem, OSError):
                        raise
                    self._spool_failed(problem)
                    await asyncio.sleep(_LONGEST_RETRY_SECONDS)
                    continue
                self._spool_fails = False
                for item in items:
                    self._safe(item)
                self._judge()

    def _append(self, spool: Spool, items: Iterable[_Item]) -> None:
        records = [msgspec.msgpack.encode(item.parcel) for item in items]
        spool.append(records)
        metrics.USAGE_SPOOLED.inc(len(records))
        self._measure(spool)

    def _spool_failed(self, problem: OSError) -> None:
        metrics.USAGE_SPOOL_FAILURES.inc()
        if not self._spool_fails:
            logger.error("usage events cannot be spooled", extra={"problem": str(problem), "events": len(self._unsafe)})
        self._spool_fails = True
        self._judge()

    def _measure(self, spool: Spool) -> None:
        self._spooled_bytes = spool.size()
        metrics.USAGE_SPOOL_BYTES.set(self._spooled_bytes)

    # --- out of the spool ----------------------------------------------------------------------------------------

    async def _publish_spooled(self) -> None:
        delay_seconds = 0.0  # at once: what this process, or another one, left when it ended
        failures = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_seconds):
                    await self._stream.trust_lost.wait()
            self._stream.trust_lost.clear()
            try:
                done = self._stream.connected and await self._publish_all_again()
            except OSError as problem:
                logger.error("spooled usage events cannot be read", extra={"problem": str(problem)})
                done = False
            self._judge()
            failures = 0 if done or not self._stream.connected else failures + 1
            backoff_seconds = min(_FIRST_RETRY_SECONDS * 2 ** min(failures, 10), _LONGEST_RETRY_SECONDS)
            delay_seconds = _LOOK_SECONDS if done else backoff_seconds

    async def _publish_all_again(self) -> bool:
        """Publishes everything that waits; whether the stream acknowledges events."""
        if self._spool is None or self._spool_fails:
            while self._unsafe:
                items = [self._unsafe.popleft() for _ in range(min(_REPUBLISHED_AT_ONCE, len(self._unsafe)))]
                if not await self._batch([(item.parcel, partial(self._answered, item)) for item in items]):
                    return False
            self._spool_fails = False
            self._judge()
        if self._spool is not None:
            while records := await asyncio.to_thread(self._spool.take, _REPUBLISHED_AT_ONCE):
                parcels = [(parcel, _ignore) for parcel in await asyncio.to_thread(_decode, self._spool, records)]
                if parcels and not await self._batch(parcels):
                    await asyncio.to_thread(self._spool.give_back, records)
                    return False
                await asyncio.to_thread(self._remove, self._spool, records)
                self._judge()
            await asyncio.to_thread(self._measure, self._spool)  # another process may have published what was here
        if not self._spooled_bytes and not self._unsafe:
            self._stream.trust()  # what made it distrusted was acknowledged to that process: no answer will come here
        return self._stream.trusted

    async def _batch(self, parcels: Sequence[tuple[Parcel, OnAnswer]]) -> bool:
        """Whether the stream has acknowledged them all."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answers: list[bool] = []

        def answered(on_answer: OnAnswer, acknowledged: bool) -> None:
            on_answer(acknowledged)
            answers.append(acknowledged)
            if len(answers) == len(parcels) and not over.done():
                over.set_result(None)

        for parcel, on_answer in parcels:
            self._stream.publish(parcel, partial(answered, on_answer))
        await over
        return all(answers)

    def _remove(self, spool: Spool, records: Sequence[Record]) -> None:
        spool.remove(records)
        self._measure(spool)

    def _close(self) -> None:
        """After the last answer: what is left goes into the spool."""
        rest = [*self._ready, *self._unsafe]
        try:
            if rest and self._spool is None:
                raise OSError("there is no spool")
            if rest and self._spool is not None:
                self._append(self._spool, rest)
        except OSError as problem:
            metrics.USAGE_LOST.inc(len(rest))
            logger.error("usage events lost at exit", extra={"events": len(rest), "problem": str(problem)})
        if self._spool is not None:
            self._spool.close()


def _decode(spool: Spool, records: Iterable[Record]) -> list[Parcel]:
    parcels: list[Parcel] = []
    for record in records:
        try:
            parcels.append(msgspec.msgpack.decode(record.data, type=Parcel))
        except msgspec.MsgspecError as problem:  # written by another version
            spool.set_aside(record, str(problem))
    return parcels


def _ignore(acknowledged: bool) -> None:
    """For an event in the spool, which is safe already."""
