"""The pool of one model: as many workers as its manifest asks for, all of the newest version."""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from common.boundary import Boundary
from common.manifest import AIModel
from common.metrics import MESSAGES_DROPPED

logger = logging.getLogger(__name__)
_boundary = Boundary("a manifest could not be applied", logger, MESSAGES_DROPPED.labels("models"))


class Worker(Protocol):
    """A worker process that its factory's runtime restarts when it ends."""

    @property
    def serving(self) -> bool:
        """It is ready and takes tickets."""

    @property
    def failing(self) -> bool:
        """It ended with an error and is not ready again yet."""

    @property
    def message(self) -> str:
        """Why it is failing, in one sentence; empty when it is not."""

    async def keep(self) -> None:
        """Runs it and restarts it when it ends; returns once it was stopped."""

    async def stop(self, grace_seconds: float) -> None:
        """Stops it for good, once its running requests have finished or the grace is over."""


class WorkerFactory(Protocol):
    """Creates workers on this machine, or wherever else they run."""

    def worker(self, model: AIModel, revision: int, number: int, on_change: Callable[[], None]) -> Worker:
        """A worker that is not started yet; `on_change` is called whenever its state changes."""


class Phase(Enum):
    """The state of a model's pool; the values are those in KV `fleet`."""

    STARTING = "starting"
    READY = "ready"
    FAILING = "failing"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class PoolReport:
    """The state of a model's pool, and why."""

    phase: Phase
    message: str = ""

    def to_json(self) -> bytes:
        return json.dumps({"phase": self.phase.value, "message": self.message}).encode()


@dataclass(slots=True)
class _Member:
    version: bytes
    number: int
    worker: Worker
    retiring: bool = False


def version_of(model: AIModel) -> bytes:
    """The part of a manifest that a worker reads: when it changes, workers are replaced."""
    document = json.loads(model.to_json())
    for scaling in ("replicas", "msgBacklogThreshold", "labels", "image", "resources"):
        document["spec"].pop(scaling, None)
    document["metadata"] = {"name": model.name}
    return json.dumps(document, sort_keys=True).encode()


def replicas_of(model: AIModel) -> int:
    """How many workers the pool has; a remote model needs one at most, to call its upstream."""
    return min(model.spec.replicas, 1) if model.spec.type == "remote" else model.spec.replicas


class Pool:
    """Replaces and scales the workers of a model; `run` is its task."""

    def __init__(self, model: AIModel, revision: int, factory: WorkerFactory, on_change: Callable[[], None]) -> None:
        self._model: AIModel | None = model
        self._revision = revision
        self._factory, self._on_change = factory, on_change
        self._grace_seconds = 0.0
        self._members: list[_Member] = []
        self._wake = asyncio.Event()

    def update(self, model: AIModel, revision: int) -> None:
        """A new manifest: new workers are started first, then the old ones finish and end."""
        self._model, self._revision = model, revision
        self._wake.set()

    def end(self, grace_seconds: float) -> None:
        """The model was deleted: its workers finish their requests within the grace."""
        self._model, self._grace_seconds = None, grace_seconds
        self._wake.set()

    @property
    def ended(self) -> bool:
        """The model was deleted and its workers have ended."""
        return self._model is None and not self._members

    async def run(self, drain_grace_seconds: float) -> None:
        """Reconciles workers with the manifest; returns when the pool has ended."""
        self._grace_seconds = drain_grace_seconds
        async with asyncio.TaskGroup() as tasks:
            while not self.ended:
                self._wake.clear()
                with _boundary:  # a manifest of strange content must not end the workers that run
                    self._reconcile(tasks)
                self._on_change()
                if not self.ended:
                    await self._wake.wait()

    def _reconcile(self, tasks: asyncio.TaskGroup) -> None:
        version = version_of(self._model) if self._model else b""
        replicas = replicas_of(self._model) if self._model else 0
        current = [member for member in self._members if not member.retiring]
        wanted = [member for member in current if member.version == version][:replicas]
        free_numbers = (number for number in range(10_000) if number not in {member.number for member in self._members})
        while self._model is not None and len(wanted) < replicas:
            wanted.append(self._start(tasks, self._model, version, next(free_numbers)))
        replaced = all(member.worker.serving for member in wanted)
        for member in current:
            # A worker of an older version serves until the new ones do; one that is not serving is stopped at once.
            if member not in wanted and (replaced or member.version == version or not member.worker.serving):
                member.retiring = True
                name = f"retire worker {member.number}"
                tasks.create_task(member.worker.stop(self._grace_seconds), name=name)

    def _start(self, tasks: asyncio.TaskGroup, model: AIModel, version: bytes, number: int) -> _Member:
        member = _Member(version, number, self._factory.worker(model, self._revision, number, self._wake.set))
        self._members.append(member)

        async def keep() -> None:
            await member.worker.keep()
            self._members.remove(member)
            self._wake.set()

        tasks.create_task(keep(), name=f"{model.name} worker {number}")
        return member

    def report(self) -> PoolReport:
        """The state of the pool now."""
        if self._model is None or replicas_of(self._model) == 0:
            return PoolReport(Phase.STOPPED)
        workers = [member.worker for member in self._members if not member.retiring]
        problem = next((worker.message for worker in workers if worker.failing), "")
        if any(worker.serving for worker in workers):
            return PoolReport(Phase.READY, problem)
        return PoolReport(Phase.FAILING, problem) if problem else PoolReport(Phase.STARTING)
