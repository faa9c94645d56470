"""The worker's heartbeat: its entry in KV `workers`, renewed every few seconds, and its gauges."""

import asyncio
import logging
import os
from contextlib import suppress

import nats.errors
from nats.js.kv import KeyValue
from uplion.dispatch.v1.worker_state_pb2 import Capability as CapabilityMessage
from uplion.dispatch.v1.worker_state_pb2 import WorkerState

from common import names
from common.lifecycle import not_cancelled
from common.manifest import AIModel
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


def worker_state(model: AIModel, engine: Engine, *, worker_id: str, address: str, revision: int) -> WorkerState:
    """What does not change while the worker runs."""
    state = WorkerState(
        worker_id=worker_id,
        address=address,
        model=model.name,
        revision=revision,
        slots_total=model.spec.maxProcessNum,
        context_tokens=engine.context_tokens,
        capabilities=sorted(CAPABILITIES[capability] for capability in engine.capabilities),
        pid=os.getpid(),
    )
    state.start_time.GetCurrentTime()
    return state


class Heartbeat:
    """Renews the worker's entry, which the bucket drops when it is not renewed."""

    def __init__(self, bus: Bus, state: WorkerState, engine: Engine, slots: SlotManager) -> None:
        self._bus = bus
        self._state = state
        self._engine = engine
        self._slots = slots
        self._bucket: KeyValue | None = None
        self._waiting = metrics.VLLM_WAITING.labels(state.model)
        self._running = metrics.VLLM_RUNNING.labels(state.model)
        self._cache_use = metrics.VLLM_CACHE_USE.labels(state.model)

    async def publish(self) -> None:
        """Writes the entry as it is now. Raises what NATS raises."""
        stats = self._engine.stats()
        state = self._state
        state.slots_free = self._slots.free
        state.queued = stats.queued
        state.cache_use = stats.cache_use or 0.0
        state.draining = self._slots.draining
        state.unmetered = self._slots.blocked
        self._waiting.set(stats.queued)
        self._running.set(stats.running)
        self._cache_use.set(stats.cache_use or 0.0)
        metrics.SLOTS.labels("free").set(self._slots.free)
        metrics.SLOTS.labels("taken").set(self._slots.busy)
        if self._bucket is None:
            self._bucket = await self._bus.js.key_value(names.KV_WORKERS)
        await self._bucket.put(state.worker_id, state.SerializeToString())

    async def run(self, changed: asyncio.Event) -> None:
        """Publishes for ever, and at once when `changed` is set; retries while NATS is away."""
        while not_cancelled():
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_SECONDS):
                    await changed.wait()
            changed.clear()
            try:
                await self.publish()
            except (nats.errors.Error, TimeoutError, OSError) as problem:
                logger.warning("heartbeat not published", extra={"problem": repr(problem)})

    async def withdraw(self) -> None:
        """Deletes the entry. Raises what NATS raises."""
        if self._bucket is not None:
            await self._bucket.delete(self._state.worker_id)
