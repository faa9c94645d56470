"""Liveness of workers: one is lost when nothing was heard of it for a while, neither a heartbeat nor an event of a run.

A busy worker is late with everything that its event loop does, so no ping of a connection decides; and a busy router
hears late, so silence is counted in looks and not in seconds: one that stood still counts a single look. A process that
dies needs none of this, since its connections break.
"""

import asyncio
import logging
from typing import Protocol

import nats.errors

from common.lifecycle import not_cancelled
from messaging.bus import Bus

logger = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
_FLUSH_SECONDS = 2.0


class OpenRun(Protocol):
    """A run that ends when its worker is lost."""

    def worker_lost(self) -> None:
        """Nothing more will come."""


class _Worker:
    """One with open runs."""

    __slots__ = ("runs", "silent_looks")

    def __init__(self) -> None:
        self.runs: set[OpenRun] = set()
        self.silent_looks = 0


class Liveness:
    """Of the workers that have open runs; `run` is its task."""

    def __init__(self, bus: Bus, silent_seconds: float) -> None:
        self._bus = bus
        self._most_looks = max(1, round(silent_seconds / LOOK_SECONDS))
        self._workers: dict[str, _Worker] = {}
        self._reconnects = bus.reconnects

    def heard(self, worker_id: str) -> None:
        """A sign of life has come."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.silent_looks = 0

    def begin(self, worker_id: str, run: OpenRun) -> None:
        """The run was opened, since the worker has just offered it."""
        worker = self._workers.get(worker_id)
        if worker is None:
            worker = self._workers[worker_id] = _Worker()
        worker.runs.add(run)
        worker.silent_looks = 0

    def end(self, worker_id: str, run: OpenRun) -> None:
        """The run is over. Idempotent."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.runs.discard(run)
            if not worker.runs:
                del self._workers[worker_id]

    async def run(self) -> None:
        """Looks for ever."""
        while not_cancelled():
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Ends the runs of workers that are lost."""
        if self._reconnects != self._bus.reconnects or not self._bus.connected:
            # No heartbeat could come, and after a reconnect each worker has its own to make first.
            self._reconnects = self._bus.reconnects
            for worker in self._workers.values():
                worker.silent_looks = 0
            return
        silent = False
        for worker in self._workers.values():
            worker.silent_looks += 1
            silent = silent or worker.silent_looks >= self._most_looks
        if not silent:
            return
        try:
            await self._bus.flush(_FLUSH_SECONDS)  # NATS answers, so what it has of heartbeats is here too
        except (nats.errors.Error, TimeoutError, ConnectionError, OSError) as problem:
            logger.warning("no worker is judged while NATS does not answer", extra={"problem": repr(problem)})
            return
        await asyncio.sleep(0)
        for worker_id, worker in list(self._workers.items()):
            if worker.silent_looks >= self._most_looks:
                logger.warning("a worker is silent", extra={"worker_id": worker_id, "runs": len(worker.runs)})
                for run in list(worker.runs):
                    run.worker_lost()
