"""What a worker says of itself in KV `workers`, and in its gauges."""

import asyncio
import logging
import os
from contextlib import suppress

import nats.errors
from nats.js.kv import KeyValue
from uplion.dispatch.v1.worker_state_pb2 import Capability as CapabilityMessage
from uplion.dispatch.v1.worker_state_pb2 import WorkerState

from common import names
from common.manifest import AIModel
from common.tasks import not_cancelled
from inference import metrics
from inference.engines.engine import Capability, Engine
from inference.tickets.slots import SlotManager
from messaging.bus import Bus

logger = logging.getLogger(__name__)

RENEW_SECONDS = 3.0
CAPABILITIES = {
    Capability.CHAT: CapabilityMessage.CAPABILITY_CHAT,
    Capability.COMPLETION: CapabilityMessage.CAPABILITY_COMPLETION,
    Capability.EMBEDDING: CapabilityMessage.CAPABILITY_EMBEDDING,
    Capability.RESUME: CapabilityMessage.CAPABILITY_RESUME,
}


class Heartbeat:
    """Renews the worker's entry; the entry vanishes by itself when the worker does."""

    def __init__(
        self,
        bus: Bus,
        model: AIModel,
        engine: Engine,
        desk: SlotManager,
        *,
        worker_id: str,
        address: str,
        revision: int,
    ) -> None:
        self._bus = bus
        self._engine = engine
        self._desk = desk
        self._bucket: KeyValue | None = None
        self._state = WorkerState(
            worker_id=worker_id,
            address=address,
            model=model.name,
            revision=revision,
            slots_total=model.spec.maxProcessNum,
            context_tokens=engine.context_tokens,
            capabilities=sorted(CAPABILITIES[capability] for capability in engine.capabilities),
            pid=os.getpid(),
        )
        self._state.start_time.GetCurrentTime()
        self._waiting = metrics.VLLM_WAITING.labels(model.name)
        self._running = metrics.VLLM_RUNNING.labels(model.name)
        self._cache_use = metrics.VLLM_CACHE_USE.labels(model.name)

    async def announce(self) -> None:
        """Says how things are now. Raises what NATS raises."""
        stats = self._engine.stats()
        state = self._state
        state.slots_free = self._desk.free
        state.queued = stats.queued
        state.cache_use = stats.cache_use or 0.0
        state.draining = self._desk.draining
        state.unmetered = self._desk.blocked()
        self._waiting.set(stats.queued)
        self._running.set(stats.running)
        self._cache_use.set(stats.cache_use or 0.0)
        metrics.SLOTS.labels("free").set(self._desk.free)
        metrics.SLOTS.labels("taken").set(self._desk.busy)
        if self._bucket is None:
            self._bucket = await self._bus.js.key_value(names.KV_WORKERS)
        await self._bucket.put(state.worker_id, state.SerializeToString())

    async def run(self, turned: asyncio.Event) -> None:
        """Announces for ever, and at once when `turned` is set; a broker that is away is tried again."""
        while not_cancelled():
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_SECONDS):
                    await turned.wait()
            turned.clear()
            try:
                await self.announce()
            except (nats.errors.Error, TimeoutError, OSError) as problem:
                logger.warning("presence could not be announced", extra={"problem": repr(problem)})

    async def withdraw(self) -> None:
        """Takes the entry away at once."""
        if self._bucket is not None:
            await self._bucket.delete(self._state.worker_id)
