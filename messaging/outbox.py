"""The outbox: usage events on their way into the USAGE stream. None is dropped because the broker is away.

An event goes to the stream directly. When the stream does not take it (no answer in time, a refusal, no connection), it
goes into the spool, and so does every later one until the stream has taken something again; the spool is then emptied
into the stream. An event is safe once the stream has acknowledged it or the spool has it on disk. It may arrive twice:
its id, known to the stream and unique in the ledger, makes that harmless.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.js.api import Header
from uplion.billing.v1.usage_event_pb2 import UsageEvent

from common import names, telemetry
from messaging import metrics, nats_protocol
from messaging.inbox import Inbox
from messaging.pull import Message
from messaging.spool import Segment, Spool

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 1.5
_PATIENCE_SECONDS = 3.0  # with a stream that takes nothing, before nothing new should be begun
_FIRST_RETRY_SECONDS = 0.2
_LONGEST_RETRY_SECONDS = 2.0
_LOOK_SECONDS = 5.0  # between looks for what ended processes have left
_SENT_AGAIN_AT_ONCE = 256
_SPOOLED_AT_ONCE = 1000
_BAD_REQUEST = 400
_HIGH_WATER = 0.8  # of the spool: beyond it nothing new should be begun

OnAnswer = Callable[[bool], None]
OnSafe = Callable[[], None]


class Parcel(msgspec.Struct, frozen=True, array_like=True):
    """One event as it is sent, and as it rests in the spool."""

    subject: str
    id: str
    traceparent: str
    event: bytes


class _Item(NamedTuple):
    """A parcel that is not safe yet, and who waits for that."""

    parcel: Parcel
    on_safe: OnSafe | None


class _Sent(NamedTuple):
    """What is on its way to the stream."""

    due: float  # the loop's time
    on_answer: OnAnswer


class Outbox:
    """Takes events at any time, and never waits. Made by `open`; `run` is its one task."""

    def __init__(self, client: Client, inbox: Inbox, spool: Spool | None, high_water_bytes: int, capacity: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._inbox = inbox
        self._spool = spool
        self._high_water_bytes = high_water_bytes
        self._capacity = capacity
        self._ready: deque[_Item] = deque()
        self._sent: dict[str, _Sent] = {}  # by reply subject, oldest first
        self._unsafe: deque[_Item] = deque()  # not taken by the stream, and not in the spool
        self._left: tuple[Segment, list[Parcel]] | None = None  # of the file that is being sent
        self._open = 0  # items that are not safe
        self._timer: asyncio.TimerHandle | None = None
        self._more, self._not_sent, self._retry = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._trusted = True  # the stream takes events, as far as we know
        self._distrusted_at = 0.0
        self._refused = self._spool_fails = False
        self._spooled_bytes = 0
        self.blocked = False  # nobody should begin now what could not be billed
        self.turned = asyncio.Event()  # set when `blocked` changes; who waits on it clears it

    @classmethod
    @asynccontextmanager
    async def open(
        cls, client: Client, inbox: Inbox, folder: Path | None, *, spool_bytes: int, capacity: int
    ) -> AsyncIterator["Outbox"]:
        """What is not safe at the end of the block goes into the spool.

        Without a folder there is no spool: then events wait in memory. At most `capacity` do so in any case.
        """
        spool = None if folder is None else await asyncio.to_thread(Spool, folder, spool_bytes)
        outbox = cls(client, inbox, spool, int(spool_bytes * _HIGH_WATER), capacity)
        try:
            yield outbox
        finally:
            outbox._close()

    async def run(self) -> None:
        """Its task: sends for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send(), name="usage events out")
            tasks.create_task(self._store(), name="usage events into the spool")
            tasks.create_task(self._send_again(), name="usage events out of the spool")

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

    def _distrust(self) -> None:
        if self._trusted:
            self._trusted = False
            self._distrusted_at = self._loop.time()
            self._retry.set()

    async def _send(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while self._ready:
                item = self._ready.popleft()
                if self._trusted:
                    self._publish(item.parcel, partial(self._answered, item))
                else:
                    self._not_taken(item)

    def _publish(self, parcel: Parcel, on_answer: OnAnswer) -> None:
        """`on_answer` hears once whether the stream has it."""
        subject = self._inbox.expect(self._arrived)
        due = self._loop.time() + _ANSWER_SECONDS
        self._sent[subject] = _Sent(due, on_answer)
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._look)
        headers = {Header.MSG_ID.value: parcel.id}
        if parcel.traceparent:
            headers[telemetry.TRACEPARENT] = parcel.traceparent
        try:
            if not self._client.is_connected:  # nats-py would keep it, and send it when nobody waits any more
                raise nats.errors.ConnectionClosedError
            nats_protocol.send(self._client, parcel.subject, parcel.event, subject, headers, now=False)
        except (nats.errors.Error, OSError):
            self._end(subject, taken=False)

    def _arrived(self, message: Message) -> None:
        refused = message.no_responders or b'"error"' in message.data
        if refused and _is_for_ever(message.data):
            metrics.USAGE_LOST.inc()
            logger.error("usage event lost: the stream can never take it", extra={"answer": _text(message)})
            refused = False
        if refused:
            if not self._refused:
                logger.error("the stream refuses usage events", extra={"answer": _text(message)})
            self._distrust()
        else:
            self._trusted = True
        self._refused = refused
        self._end(message.subject, taken=not refused)
        self._judge()

    def _look(self) -> None:
        """The timer: what has waited for its answer for too long is not taken."""
        now = self._loop.time()
        self._timer = None
        for subject, sent in list(self._sent.items()):
            if sent.due > now:
                self._timer = self._loop.call_at(sent.due, self._look)
                return
            self._end(subject, taken=False)

    def _end(self, subject: str, *, taken: bool) -> None:
        sent = self._sent.pop(subject, None)
        self._inbox.forget(subject)
        if sent is not None:
            sent.on_answer(taken)

    def _answered(self, item: _Item, taken: bool) -> None:
        if taken:
            self._safe(item)
        else:
            self._not_taken(item)

    def _safe(self, item: _Item) -> None:
        self._open -= 1
        if not self._open:
            self._idle.set()
        if item.on_safe is not None:
            item.on_safe()

    def _not_taken(self, item: _Item) -> None:
        self._distrust()
        metrics.USAGE_NOT_TAKEN.inc()
        if len(self._unsafe) >= self._capacity:
            lost = self._unsafe.popleft()
            metrics.USAGE_LOST.inc()
            logger.error("usage event lost: no room to keep it", extra={"lost_event": lost.parcel.id})
            self._safe(lost)
        self._unsafe.append(item)
        self._not_sent.set()

    # --- into the spool ------------------------------------------------------------------------------------------

    async def _store(self) -> None:
        if self._spool is None:
            return
        while True:
            await self._not_sent.wait()
            self._not_sent.clear()
            while self._unsafe:
                items = [self._unsafe.popleft() for _ in range(min(_SPOOLED_AT_ONCE, len(self._unsafe)))]
                try:
                    await asyncio.to_thread(self._append, self._spool, items)
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

    def _judge(self) -> None:
        """Says so when it changes whether work may be begun."""
        # A stream on a full disk does not refuse: it says nothing, while tickets in memory go on being taken.
        silent = not self._trusted and self._loop.time() - self._distrusted_at > _PATIENCE_SECONDS
        full = self._spooled_bytes > self._high_water_bytes
        blocked = self._refused or silent or self._spool_fails or full
        if blocked != self.blocked:
            self.blocked = blocked
            logger.log(logging.ERROR if blocked else logging.INFO, "metering", extra={"blocked": blocked})
            self.turned.set()

    # --- out of the spool ----------------------------------------------------------------------------------------

    async def _send_again(self) -> None:
        delay_seconds = 0.0  # at once: what this process, or another one, left when it ended
        failures = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_seconds):
                    await self._retry.wait()
            self._retry.clear()
            try:
                done = self._client.is_connected and await self._all_again()
            except OSError as problem:
                logger.error("spooled usage events cannot be read", extra={"problem": str(problem)})
                done = False
            self._judge()
            failures = 0 if done or not self._client.is_connected else failures + 1
            backoff_seconds = min(_FIRST_RETRY_SECONDS * 2 ** min(failures, 10), _LONGEST_RETRY_SECONDS)
            delay_seconds = _LOOK_SECONDS if done else backoff_seconds

    async def _all_again(self) -> bool:
        """Sends everything that waits; whether the stream takes events."""
        if self._spool is None or self._spool_fails:
            while self._unsafe:
                items = [self._unsafe.popleft() for _ in range(min(_SENT_AGAIN_AT_ONCE, len(self._unsafe)))]
                if not await self._batch([(item.parcel, partial(self._answered, item)) for item in items]):
                    return False
            self._spool_fails = False
            self._judge()
        while self._spool is not None and await self._next_file(self._spool):
            assert self._left is not None
            segment, parcels = self._left
            while parcels:
                if not await self._batch([(parcel, _nobody) for parcel in islice(parcels, _SENT_AGAIN_AT_ONCE)]):
                    return False
                del parcels[:_SENT_AGAIN_AT_ONCE]
            self._left = None
            await asyncio.to_thread(self._remove, self._spool, segment)
            self._judge()
        return self._trusted

    async def _next_file(self, spool: Spool) -> bool:
        if self._left is None:
            self._left = await asyncio.to_thread(_take, spool)
        return self._left is not None

    async def _batch(self, parcels: Sequence[tuple[Parcel, OnAnswer]]) -> bool:
        """Whether the stream has taken them all."""
        over: asyncio.Future[None] = self._loop.create_future()
        answers: list[bool] = []

        def answered(on_answer: OnAnswer, taken: bool) -> None:
            on_answer(taken)
            answers.append(taken)
            if len(answers) == len(parcels) and not over.done():
                over.set_result(None)

        for parcel, on_answer in parcels:
            self._publish(parcel, partial(answered, on_answer))
        await over
        return all(answers)

    def _remove(self, spool: Spool, segment: Segment) -> None:
        segment.remove()
        self._measure(spool)

    def _close(self) -> None:
        """Nothing runs any more: the rest goes into the spool, here and now."""
        if self._timer is not None:
            self._timer.cancel()
        for subject in list(self._sent):
            self._end(subject, taken=False)
        rest = [*self._ready, *self._unsafe]
        try:
            if rest and self._spool is None:
                raise OSError("there is no spool")
            if rest and self._spool is not None:
                self._append(self._spool, rest)
        except OSError as problem:
            metrics.USAGE_LOST.inc(len(rest))
            logger.error("usage events lost at exit", extra={"events": len(rest), "problem": str(problem)})
        if self._left is not None:
            self._left[0].close()
        if self._spool is not None:
            self._spool.close()


def _text(message: Message) -> str:
    return message.data[:300].decode(errors="replace")


def _is_for_ever(answer: bytes) -> bool:
    """Whether it is the event's fault, and not the server's (503: no room, no leader)."""
    try:
        return bool(answer) and json.loads(answer)["error"]["code"] == _BAD_REQUEST
    except (ValueError, KeyError, TypeError):
        return False


def _take(spool: Spool) -> tuple[Segment, list[Parcel]] | None:
    segment = spool.take()
    if segment is None:
        return None
    parcels: list[Parcel] = []
    for record in segment.records():
        try:
            parcels.append(msgspec.msgpack.decode(record, type=Parcel))
        except msgspec.MsgspecError as problem:  # another version's: it stays for whoever can read it
            segment.set_aside(str(problem))
    return segment, parcels


def _nobody(taken: bool) -> None:
    """Waits for an event that is in the spool."""
