"""NATS and JetStream as every service uses them: streams, publishing until acknowledged, watching buckets.

Messages are the protos of the contract; subjects come from `common.names`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NotFoundError
from nats.js.kv import KeyValue

from common import names, telemetry
from common.lifecycle import not_cancelled
from messaging import decisions, nats_protocol
from messaging.connection import Connection
from messaging.nats_protocol import Wire, new_client

logger = logging.getLogger(__name__)

TASK_ACK_WAIT_SECONDS = 30.0
WORKER_TTL_SECONDS = 10.0
USAGE_ACK_WAIT_SECONDS = 20.0  # what a killed billing process held comes back after that time
_API_SECONDS = 5.0
_QUIET_SECONDS = 1.0
_CLOSE_SECONDS = 5.0
_WATCHER_SECONDS = 10.0  # how long the server keeps a watcher whose client is gone
_DAY_SECONDS = 86_400.0
_INSUFFICIENT_STORAGE = 10047
_DELETED = ("DEL", "PURGE")


class NoRoomError(nats.errors.Error):
    """JetStream's own limits leave no room for a stream of ours."""

    def __init__(self, stream: str, size_bytes: int) -> None:
        size = f"{size_bytes >> 20} MB" if size_bytes else "its share"
        super().__init__(
            f"NATS has no room for the stream {stream}, which takes {size}:"
            " raise its max_file_store and max_memory_store, or free space on its disk"
        )

    def __str__(self) -> str:
        return str(self.args[0])


class Bus(Connection):
    """A connection to NATS with JetStream. Made by `connect_bus`."""

    def __init__(self, client: Client, wire: Wire) -> None:
        super().__init__(client, wire)
        self.js: JetStreamContext = client.jetstream(timeout=_API_SECONDS)

    async def ensure_streams(self) -> None:
        """Creates the streams and buckets that are missing. Idempotent; any number of processes may do it at once."""
        await self._ensure_stream(
            api.StreamConfig(
                name=names.STREAM_TASKS,
                subjects=["tasks.>"],
                retention=api.RetentionPolicy.WORK_QUEUE,
                storage=api.StorageType.MEMORY,
                max_age=_DAY_SECONDS,
                duplicate_window=120.0,
            )
        )
        await self._ensure_stream(
            api.StreamConfig(
                name=names.STREAM_USAGE,
                subjects=["usage.>"],
                retention=api.RetentionPolicy.LIMITS,
                storage=api.StorageType.FILE,
                max_age=30 * _DAY_SECONDS,
                duplicate_window=600.0,
            )
        )
        await self._ensure_stream(
            api.StreamConfig(
                name=names.STREAM_DEAD, subjects=["dead.>"], storage=api.StorageType.FILE, max_age=90 * _DAY_SECONDS
            )
        )
        await self._ensure_stream(
            api.StreamConfig(
                name=names.STREAM_DECISIONS,
                subjects=["decisions.>"],
                storage=api.StorageType.FILE,
                max_age=decisions.KEPT_SECONDS,
                max_bytes=decisions.KEPT_BYTES,
                max_msgs_per_subject=1,
                discard=api.DiscardPolicy.OLD,
            )
        )
        for config in (
            api.KeyValueConfig(bucket=names.KV_MODELS, history=16, storage=api.StorageType.FILE),
            api.KeyValueConfig(bucket=names.KV_WORKERS, ttl=WORKER_TTL_SECONDS, storage=api.StorageType.MEMORY),
            api.KeyValueConfig(bucket=names.KV_FLEET, storage=api.StorageType.MEMORY),
        ):
            await self._ensure(f"KV_{config.bucket}", 0, partial(self.js.create_key_value, config))

    async def _ensure_stream(self, config: api.StreamConfig) -> None:
        await self._ensure(str(config.name), config.max_bytes or 0, partial(self.js.add_stream, config))

    async def _ensure(self, name: str, size_bytes: int, create: Callable[[], Awaitable[object]]) -> None:
        """Looks first: NATS refuses to make a stream that is there when it has no room for a second one."""
        if await self._exists(name):
            return
        try:
            await create()
        except APIError as problem:
            if await self._exists(name):  # another process was faster
                return
            if problem.err_code == _INSUFFICIENT_STORAGE:
                raise NoRoomError(name, size_bytes) from problem
            raise

    async def _exists(self, name: str) -> bool:
        try:
            await self.js.stream_info(name)
        except NotFoundError:
            return False
        return True

    async def ensure_task_consumer(self, model: str, lane: str = names.LANE_DEFAULT) -> str:
        """The durable consumer that the workers of a model share; returns its name. Before anything scales on it."""
        name = names.task_consumer(model, lane)
        await self.js.add_consumer(
            names.STREAM_TASKS,
            api.ConsumerConfig(
                durable_name=name,
                filter_subject=names.task_subject(model, lane),
                ack_policy=api.AckPolicy.EXPLICIT,
                ack_wait=TASK_ACK_WAIT_SECONDS,
                max_ack_pending=100_000,
                max_waiting=4096,
            ),
        )
        return name

    async def task_progress(self, model: str, lane: str) -> "TaskProgress":
        """How far a queue of tickets has been delivered. Raises nats.errors.Error: NotFoundError without a queue."""
        info = await self.js.consumer_info(names.STREAM_TASKS, names.task_consumer(model, lane))
        return TaskProgress(info.delivered.stream_seq if info.delivered else 0, info.num_waiting or 0)

    async def ensure_usage_consumer(self) -> str:
        """The durable consumer that all billing processes share; returns its name."""
        await self.js.add_consumer(
            names.STREAM_USAGE,
            api.ConsumerConfig(
                durable_name=names.CONSUMER_BILLING,
                ack_policy=api.AckPolicy.EXPLICIT,
                ack_wait=USAGE_ACK_WAIT_SECONDS,
                max_ack_pending=100_000,
                max_waiting=4096,
            ),
        )
        return names.CONSUMER_BILLING

    async def publish(
        self, subject: str, payload: bytes, *, message_id: str = "", timeout: float = _API_SECONDS
    ) -> None:
        """Publishes into a stream and waits for its acknowledgement; the trace context travels along.

        `message_id` is what the stream knows duplicates by. Raises nats.errors.Error or TimeoutError.
        """
        headers = telemetry.outgoing()
        if message_id:
            headers[api.Header.MSG_ID] = message_id
        await self.js.publish(subject, payload, timeout=timeout, headers=headers or None)

    async def snapshot(self, bucket: str, keys: str = ">") -> list[KeyValue.Entry]:
        """All that a bucket holds now. One short-lived consumer instead of a round trip for each key.

        Raises nats.errors.Error or TimeoutError.
        """
        async with asyncio.timeout(_API_SECONDS):
            while True:
                entries: list[KeyValue.Entry] = []
                watcher = await (await self.js.key_value(bucket)).watch(keys, inactive_threshold=_WATCHER_SECONDS)
                try:
                    while (entry := await watcher.updates(timeout=_QUIET_SECONDS)) is not None:  # type: ignore[no-untyped-call]
                        entries.append(entry)
                    if entries or not await _ended_too_early(watcher):
                        return [entry for entry in entries if entry.operation not in _DELETED]
                except nats.errors.TimeoutError:  # the end was not announced: see `watch`
                    continue
                finally:
                    await watcher.stop()  # type: ignore[no-untyped-call]
                    with suppress(nats.errors.Error):  # else it stays for a while, and a bucket has room for a thousand
                        await self.js.delete_consumer(f"KV_{bucket}", watcher._sub._consumer)  # type: ignore[union-attr]

    async def watch(
        self, bucket: str, *, ttl_seconds: float | None = None, known: Iterable[str] = ()
    ) -> AsyncIterator["Change | None"]:
        """Yields the entries of a bucket and then their changes, without end; None marks the end of the first entries.

        Survives reconnects: it then yields all entries again, and deletions that it missed. With `ttl_seconds` an
        entry that was not renewed for so long is yielded as deleted (the server drops such entries silently). So are
        the keys of `known`, what the caller has from a watch before, that are not there any more.
        """
        loop = asyncio.get_running_loop()
        seen = dict.fromkeys(known, loop.time())
        turned_at = loop.time()
        while not_cancelled():
            reconnects = self.reconnects
            try:
                watcher = await (await self.js.key_value(bucket)).watchall(
                    include_history=False, inactive_threshold=_WATCHER_SECONDS
                )
            except (nats.errors.Error, TimeoutError) as problem:
                logger.warning("bucket cannot be watched yet", extra={"bucket": bucket, "problem": repr(problem)})
                await asyncio.sleep(0.5)
                continue
            fresh: set[str] = set()
            synced = False
            try:
                while reconnects == self.reconnects:
                    entry = None
                    try:
                        # Not its own timeout: in Python 3.11 wait_for loses a cancellation that meets an update.
                        async with asyncio.timeout(_QUIET_SECONDS):
                            entry = await watcher.updates(timeout=None)  # type: ignore[no-untyped-call]
                    except (TimeoutError, nats.errors.TimeoutError):
                        if not synced:
                            # The end is marked by the message after which none is pending. It never comes if that one
                            # expires before it is delivered: begin anew.
                            break
                    if entry is not None and entry.key is not None:
                        fresh.add(entry.key)
                        if entry.operation in _DELETED:
                            seen.pop(entry.key, None)
                            yield Change(entry.key, None, entry.revision or 0)
                        else:
                            seen[entry.key] = loop.time()
                            yield Change(
                                entry.key, entry.value or b"", entry.revision or 0, _unix_seconds(entry.created)
                            )
                    elif not synced:
                        if not fresh and await _ended_too_early(watcher):
                            break
                        synced = True
                        for key in [key for key in seen if key not in fresh]:
                            del seen[key]
                            yield Change(key, None, 0)
                        yield None
                    if ttl_seconds is not None:
                        now = loop.time()
                        if now - turned_at > 2 * _QUIET_SECONDS:  # this loop stood still, and read no renewal
                            seen = dict.fromkeys(seen, now)
                        turned_at = now
                        limit = now - ttl_seconds
                        for key in [key for key, when in seen.items() if when < limit]:
                            del seen[key]
                            yield Change(key, None, 0)
            finally:
                with suppress(nats.errors.Error, TimeoutError, asyncio.TimeoutError):
                    await watcher.stop()  # type: ignore[no-untyped-call]


async def _ended_too_early(watcher: KeyValue.KeyWatcher) -> bool:
    """Whether "nothing there" overtook what is there: the client asks the server while messages are on their way."""
    try:
        info = await watcher._sub.consumer_info()  # type: ignore[union-attr]
    except (nats.errors.Error, TimeoutError):
        return True
    return info.delivered is None or info.delivered.consumer_seq > 0 or bool(info.num_pending)


def _unix_seconds(created: object) -> float:
    return created.timestamp() if isinstance(created, datetime) else 0.0


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """The state of a queue of tickets."""

    delivered_sequence: int  # of TASKS: tickets up to it were delivered to a worker at least once
    takers: int  # workers that wait for a ticket; then none waits to be delivered


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a bucket as it is now; `value` None means deleted."""

    key: str
    value: bytes | None
    revision: int
    created_seconds: float = 0.0  # unix time of this revision; 0: not known


@asynccontextmanager
async def connect_bus(url: str, name: str, *, connect_seconds: float = 10.0) -> AsyncIterator[Bus]:
    """A connection that reconnects until it is closed; leaving the block drains and closes it.

    Raises TimeoutError when nothing answers at `url` within `connect_seconds`.
    """
    bus: Bus | None = None

    async def on_reconnect() -> None:
        if bus is not None:
            bus.reconnects += 1
        logger.info("reconnected to NATS")

    async def on_disconnect() -> None:
        logger.warning("lost NATS")

    async def on_error(problem: Exception) -> None:
        logger.warning("NATS error", extra={"problem": repr(problem)})

    options: Mapping[str, object] = {
        "reconnected_cb": on_reconnect,
        "disconnected_cb": on_disconnect,
        "error_cb": on_error,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.2,
        "connect_timeout": 2,
        "ping_interval": 10,
        "max_outstanding_pings": 3,
        "pending_size": 8 * 1024 * 1024,
    }
    async with asyncio.timeout(connect_seconds):
        nc, wire = new_client()
        await nc.connect(url, name=name, **options)  # type: ignore[arg-type]
    bus = Bus(nc, wire)
    try:
        yield bus
    finally:
        await nats_protocol.close(nc, _CLOSE_SECONDS)
