"""Models in JetStream (ADR 2): manifests, fleet's reports, workers and queue lengths."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

import msgspec
import nats.errors
import nats.js.errors
from google.protobuf.message import DecodeError
from uplion.dispatch.v1.worker_state_pb2 import WorkerState

from common import manifest, names
from common.errors import Reason, UplionError
from messaging.bus import Bus

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
_APPLY_TRIES = 5


@dataclass(frozen=True, slots=True)
class Applied:
    """A model's entry in the bucket."""

    manifest: bytes  # JSON
    revision: int
    update_time: datetime | None


class ModelStore:
    """Reads and writes the key-value buckets on each call; caches nothing."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def restore(self) -> None:
        """Ensures the streams and every model's queue: those kept in memory are lost when the broker restarts."""
        async with self._translated():
            await self._bus.ensure_streams()
            for applied in (await self._applied(">")).values():
                with suppress(msgspec.MsgspecError, ValueError):
                    await self._bus.ensure_task_consumer(manifest.from_json(applied.manifest).name)

    async def apply(self, model: manifest.AIModel) -> Applied:
        """Writes the manifest unless it is there; the queue first, so that no worker sees a model without one."""
        async with self._translated():
            await self._bus.ensure_task_consumer(model.name)
            bucket = await self._bus.js.key_value(names.KV_MODELS)
            key, value = names.token(model.name), model.to_json()
            for _ in range(_APPLY_TRIES):
                try:
                    found = await bucket.get(key)
                    last = found.revision or 0
                    if found.value != value:
                        await bucket.update(key, value, last=last)
                except nats.js.errors.KeyNotFoundError:
                    with suppress(nats.js.errors.KeyWrongLastSequenceError):
                        await bucket.create(key, value)
                except nats.js.errors.KeyWrongLastSequenceError:
                    pass  # changed concurrently: read again
                applied = (await self._applied(key)).get(key)
                if applied is not None and applied.manifest == value:
                    return applied
        raise UplionError(Reason.UNAVAILABLE, "The model changes too often; try again.")

    async def delete(self, name: str) -> None:
        """Removes the manifest; NOT_FOUND when there is none. The queue stays, so its tickets are processed."""
        async with self._translated():
            bucket = await self._bus.js.key_value(names.KV_MODELS)
            key = names.token(name)
            try:
                await bucket.get(key)
            except nats.js.errors.KeyNotFoundError:
                raise UplionError(Reason.NOT_FOUND, f"There is no model {name!r}.", param="name") from None
            await bucket.delete(key)

    async def models(self) -> dict[str, Applied]:
        """Every model's manifest, by the model's token."""
        async with self._translated():
            return await self._applied(">")

    async def fleet_reports(self) -> dict[str, bytes]:
        """fleet's report on each model, by the model's token."""
        async with self._translated():
            return {entry.key: entry.value or b"" for entry in await self._bus.snapshot(names.KV_FLEET)}

    async def workers(self) -> dict[str, list[WorkerState]]:
        """The living workers of each model, by the model's name."""
        result: dict[str, list[WorkerState]] = {}
        async with self._translated():
            for entry in await self._bus.snapshot(names.KV_WORKERS):
                try:
                    worker = WorkerState.FromString(entry.value or b"")
                except DecodeError:
                    logger.warning("worker state cannot be read", extra={"worker": entry.key})
                    continue
                result.setdefault(worker.model, []).append(worker)
        return result

    async def queued(self) -> dict[str, int]:
        """Tickets that no worker has taken, by consumer."""
        result: dict[str, int] = {}
        async with self._translated():
            while page := await self._bus.js.consumers_info(names.STREAM_TASKS, offset=len(result)):
                before = len(result)
                result.update({info.name: info.num_pending or 0 for info in page})
                if len(result) == before:
                    break
        return result

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """Raises UNAVAILABLE for an unreachable broker; at once when the connection is known to be lost."""
        try:
            if not self._bus.connected:
                raise nats.errors.ConnectionClosedError
            yield
        except (nats.errors.Error, TimeoutError) as problem:
            logger.warning("broker is away", extra={"problem": repr(problem)})
            raise UplionError(
                Reason.UNAVAILABLE,
                "The message broker is not available; try again.",
                retry_after_seconds=_RETRY_SECONDS,
            ) from problem

    async def _applied(self, keys: str) -> dict[str, Applied]:
        return {
            entry.key: Applied(entry.value or b"", entry.revision or 0, _moment(entry.created))
            for entry in await self._bus.snapshot(names.KV_MODELS, keys)
        }


def _moment(created: object) -> datetime | None:
    return created if isinstance(created, datetime) else None
