"""The consumer: records usage events from JetStream in the ledger, settles them, and acknowledges, in this order."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import SystemRandom
from typing import Protocol, TypeVar

import asyncpg
import nats.errors

from billing import metrics
from billing.cooperative import chunks
from billing.duties.retention import oldest_month
from billing.entry import Arrival, Entry, MalformedEventError, decode
from billing.rollups import Totals
from billing.settings import BillingSettings
from billing.store import Recorded
from common import names
from common.boundary import Boundary
from common.lifecycle import not_cancelled
from common.metrics import OBSERVATIONS_FAILED
from common.telemetry import span
from messaging.bus import USAGE_ACK_WAIT_SECONDS, Bus
from messaging.dead_letters import dead_letter
from messaging.pull import Message, Pull
from storage.valkey import ValkeyError

logger = logging.getLogger(__name__)

T = TypeVar("T")
_observing = Boundary("a batch was not measured", logger, OBSERVATIONS_FAILED.labels("batch"))
_FIRST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 2.0
_POLL_SECONDS = 0.5
_ACK_SECONDS = 5.0
_TRIES = 3  # before an error that is not the servers' is taken for the rows' own
_random = SystemRandom()  # jitter of retries
# What is the servers' state and passes, whatever the rows: no connection, no room, a lock, a schema of another version.
_TRANSIENT = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    nats.errors.Error,
    ValkeyError,
)
# SQLSTATE classes of errors that the same rows would raise again: data exception, integrity, program limit.
_ROWS_OWN = ("22", "23", "54")


class Recorder(Protocol):
    """Commits a batch to the ledger; `billing.store.LedgerWriter`."""

    async def record(self, entries: Sequence[Entry], /) -> Recorded: ...


class Settler(Protocol):
    """Settles a committed batch in Valkey; `billing.reservations.settlement.Settlement`."""

    async def settle(self, entries: Sequence[Entry], totals: Totals, /) -> int: ...


@dataclass(slots=True)
class _Dead:
    """A message that is to be published to DEAD."""

    message: Message
    reason: str


class _RowsError(Exception):
    """The ledger refuses these rows, and would again; the cause says why."""


class _StoppedError(Exception):
    """The process stops; what was not acknowledged will be delivered again."""


class Consumer:
    """A member of the durable consumer; any number of processes share its messages."""

    def __init__(self, bus: Bus, recorder: Recorder, settler: Settler, settings: BillingSettings) -> None:
        self._bus = bus
        self._recorder = recorder
        self._settler = settler
        self._settings = settings
        self._stop = asyncio.Event()
        self._largest = max(settings.batch_events, settings.lag_batch_events)
        self._under_way: list[list[Message]] = []
        self._free = asyncio.Semaphore(settings.concurrent_batches)

    async def run(self, stop: asyncio.Event) -> None:
        """Consumes until `stop`; batches under way are finished, unless a server they need is down."""
        self._stop = stop
        reconnects = self._bus.reconnects
        async with Pull(self._bus, names.STREAM_USAGE, await self._bus.ensure_usage_consumer()) as self._pull:
            await self._pull.want(2 * self._largest)  # one batch to take, and the next in transit
            async with asyncio.TaskGroup() as extenders:
                extender = extenders.create_task(self._extend_ack_wait(), name="billing ack wait")
                async with asyncio.TaskGroup() as batches:
                    while not stop.is_set():
                        messages = await self._collect()
                        if messages:
                            self._under_way.append(messages)
                            await self._free.acquire()
                            batches.create_task(self._process(messages), name="billing batch")
                        elif reconnects != self._bus.reconnects:  # perhaps to a server without the stream
                            reconnects = await self._ensure_consumer(reconnects)
                extender.cancel()
            await self._give_back(await self._pull.finish())

    async def _ensure_consumer(self, reconnects: int) -> int:
        now = self._bus.reconnects
        try:
            await self._bus.ensure_streams()
            await self._bus.ensure_usage_consumer()
        except (nats.errors.Error, TimeoutError) as problem:
            logger.warning("stream is not back yet", extra={"problem": repr(problem)})
            return reconnects
        return now

    async def _collect(self) -> list[Message]:
        """The next batch: full, `batch_seconds` old, or `idle_seconds` after its last message. Empty when none came."""
        most = self._settings.batch_events
        messages = await self._pull.take(most, _POLL_SECONDS)
        now = asyncio.get_running_loop().time
        deadline = now() + self._settings.batch_seconds
        while 0 < len(messages) < most and (left := deadline - now()) > 0:
            more = await self._pull.take(most - len(messages), min(left, self._settings.idle_seconds))
            messages += more
            if not more or self._stop.is_set():
                break
        if len(messages) == most:  # what waits already costs less in this transaction than in another one
            messages += self._pull.take_waiting(self._largest - most)
        return messages

    async def _process(self, messages: list[Message]) -> None:
        """Bills a batch. If it is abandoned half way (stop, crash), it is delivered again, with the same result."""
        try:
            with span("bill batch", events=len(messages)):
                await self._bill(messages)
        except _StoppedError:
            logger.info("batch left for later", extra={"events": len(messages)})
            await self._give_back(messages)
        finally:
            self._under_way.remove(messages)
            self._free.release()

    async def _bill(self, messages: list[Message]) -> None:
        now_seconds = time.time()
        oldest = oldest_month(now_seconds, self._settings.retention_months).isoformat()
        entries: dict[int, Entry] = {}
        dead: list[_Dead] = []
        async for part in chunks(list(enumerate(messages))):
            for position, message in part:
                try:
                    entry = decode(message.data, Arrival.of(message))
                    if entry.month < oldest:  # a duplicate could not be recognised: its row may be dropped
                        raise MalformedEventError("the ledger of its month is closed")
                    entries[position] = entry
                except MalformedEventError as problem:
                    dead.append(_Dead(message, str(problem)))
                except Exception as problem:  # the message-consumer boundary: a bug must not stop the batch
                    logger.exception("usage event cannot be read")
                    dead.append(_Dead(message, f"cannot be read: {type(problem).__name__}"))
        await self._record(messages, list(entries), entries, dead)
        for dead_message in dead:
            await self._retry("dead", lambda dead_message=dead_message: self._publish_dead(dead_message))  # type: ignore[misc]
        await self._acknowledge(messages)

    async def _record(
        self, messages: list[Message], positions: list[int], entries: dict[int, Entry], dead: list[_Dead]
    ) -> None:
        """Records and settles; bisection finds the rows that the ledger always refuses, so that the others go on."""
        if not positions:
            return
        part = [entries[position] for position in positions]
        try:
            recorded = await self._retry("ledger", lambda: self._recorder.record(part))
        except _RowsError as refused:
            if len(positions) == 1:
                why = f"the ledger cannot hold it: {type(refused.__cause__).__name__}"
                dead.append(_Dead(messages[positions[0]], why))
                return
            middle = len(positions) // 2
            await self._record(messages, positions[:middle], entries, dead)
            await self._record(messages, positions[middle:], entries, dead)
            return
        await self._retry("settlement", lambda: self._settler.settle(part, recorded.totals))
        with _observing:
            _measure(messages[positions[-1]], part, recorded)

    async def _retry(self, step: str, action: Callable[[], Awaitable[T]]) -> T:
        """Retries a step until it succeeds or the process stops: every step is idempotent, and none may be skipped.

        Raises _RowsError for the step "ledger" where the rows themselves are refused.
        """
        delay, tries = _FIRST_RETRY_SECONDS, 0
        while True:
            try:
                return await action()
            except Exception as problem:  # the message-consumer boundary: the batch is retried
                tries += not _is_transient(problem)
                if step == "ledger" and (tries >= _TRIES or _is_rows_own(problem)):
                    raise _RowsError from problem
                self._note(step, problem)
            if self._stop.is_set():
                raise _StoppedError
            await asyncio.sleep(delay * _random.uniform(0.5, 1.0))
            delay = min(2 * delay, _LONGEST_RETRY_SECONDS)

    def _note(self, step: str, problem: Exception) -> None:
        metrics.BILLING_RETRIES.labels(step).inc()
        logger.warning("billing step failed, trying again", extra={"step": step, "problem": repr(problem)})

    async def _publish_dead(self, dead: _Dead) -> None:
        letter = dead_letter(names.STREAM_USAGE, dead.message, dead.reason)
        logger.error("malformed usage event", extra={"reason": dead.reason, "subject": dead.message.subject})
        await self._bus.js.publish(letter.subject, letter.payload, headers=letter.headers, timeout=_ACK_SECONDS)
        metrics.BILLING_EVENTS.labels("dead").inc()

    async def _acknowledge(self, messages: list[Message]) -> None:
        """After a failure they are delivered again, as duplicates."""
        try:
            await self._pull.acknowledge(messages, _ACK_SECONDS)
        except (nats.errors.Error, TimeoutError) as problem:
            self._note("ack", problem)

    async def _give_back(self, messages: Sequence[Message]) -> None:
        try:
            await self._pull.give_back(messages)
        except nats.errors.Error as problem:
            logger.warning("messages cannot be given back", extra={"problem": repr(problem)})

    async def _extend_ack_wait(self) -> None:
        """Restarts the ack wait of all messages under way, so that none is redelivered meanwhile."""
        while not_cancelled():
            await asyncio.sleep(USAGE_ACK_WAIT_SECONDS / 3)
            try:
                for messages in (*self._under_way, self._pull.waiting):
                    await self._pull.keep(messages)
            except nats.errors.Error as problem:
                logger.warning("messages cannot be kept", extra={"problem": repr(problem)})


def _is_transient(problem: Exception) -> bool:
    if isinstance(problem, asyncpg.PostgresError):
        return not (problem.sqlstate or "").startswith(_ROWS_OWN)
    return isinstance(problem, _TRANSIENT)


def _is_rows_own(problem: Exception) -> bool:
    """Whether a retry is vain. An integrity error may pass: a partition was dropped, or another process was faster."""
    if isinstance(problem, asyncpg.PostgresError):
        return (problem.sqlstate or "").startswith(_ROWS_OWN) and not isinstance(
            problem, asyncpg.IntegrityConstraintViolationError
        )
    return isinstance(problem, (ArithmeticError, ValueError)) and not isinstance(problem, _TRANSIENT)


def _measure(last: Message, entries: Sequence[Entry], recorded: Recorded) -> None:
    metrics.BILLING_EVENTS.labels("new").inc(recorded.new)
    metrics.BILLING_EVENTS.labels("duplicate").inc(recorded.duplicates)
    metrics.BILLING_UNPRICED.inc(recorded.unpriced)
    counted = recorded.counted
    metrics.BILLING_REQUESTS.inc(counted.requests)
    for kind, tokens in counted.tokens.items():
        metrics.BILLING_TOKENS.labels(kind).inc(tokens)
    for currency, cost in counted.cost.items():
        metrics.BILLING_COST.labels(currency).inc(float(cost))
    metrics.BILLING_UNPRICED_TOKENS.inc(counted.unpriced_tokens)
    metrics.BILLING_BATCH_EVENTS.observe(len(entries))
    oldest_seconds = min(entry.end_microseconds for entry in entries) / 1e6
    metrics.BILLING_LAG.observe(max(0.0, time.time() - oldest_seconds))
    metrics.BILLING_PENDING.set(last.metadata.num_pending or 0)
