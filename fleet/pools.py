"""The workers of one model: as many as its manifest asks for, all of its newest version."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from common.manifest import AIModel


class Worker(Protocol):
    """One worker that is kept running by whoever made it."""

    @property
    def serving(self) -> bool:
        """It is ready and takes work."""

    @property
    def failing(self) -> bool:
        """It ended badly and is not ready again."""

    @property
    def message(self) -> str:
        """Why it fails, in a sentence; empty when it does not."""

    async def keep(self) -> None:
        """Runs it, starting it again when it ends, until it is stopped."""

    async def stop(self, grace_seconds: float) -> None:
        """Ends it for good when what it holds is done, or when the grace is over."""


class Workplace(Protocol):
    """Where workers are made."""

    def worker(self, model: AIModel, revision: int, number: int, on_change: Callable[[], None]) -> Worker:
        """A worker, not yet running; `on_change` is called whenever it fares differently."""


class Phase(Enum):
    """How a model fares; the values are what KV `fleet` says."""

    STARTING = "starting"
    READY = "ready"
    FAILING = "failing"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class PoolReport:
    """How a model fares, and why."""

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
    """What a worker must be started anew for when it changes: everything that it reads."""
    document = json.loads(model.to_json())
    for scaling in ("replicas", "msgBacklogThreshold", "labels", "image", "resources"):
        document["spec"].pop(scaling, None)
    document["metadata"] = {"name": model.name}
    return json.dumps(document, sort_keys=True).encode()


def replicas_of(model: AIModel) -> int:
    """How many workers it asks for here; a rented model needs one to talk to its upstream."""
    return min(model.spec.replicas, 1) if model.spec.type == "remote" else model.spec.replicas


class Pool:
    """Call `want` with each new manifest; `run` makes it so, and returns once the model is gone."""

    def __init__(self, model: AIModel, revision: int, workplace: Workplace, on_change: Callable[[], None]) -> None:
        self._model: AIModel | None = model
        self._revision = revision
        self._workplace, self._on_change = workplace, on_change
        self._grace_seconds = 0.0
        self._members: list[_Member] = []
        self._wake = asyncio.Event()

    def want(self, model: AIModel, revision: int) -> None:
        """A changed manifest: new workers first, and then the old ones finish and end."""
        self._model, self._revision = model, revision
        self._wake.set()

    def end(self, grace_seconds: float) -> None:
        """The model is gone: its workers finish what they hold within the grace."""
        self._model, self._grace_seconds = None, grace_seconds
        self._wake.set()

    @property
    def ended(self) -> bool:
        """The model is gone and so are its workers."""
        return self._model is None and not self._members

    async def run(self, drain_grace_seconds: float) -> None:
        """Keeps as many workers as wanted until the pool is ended and the last one is gone."""
        self._grace_seconds = drain_grace_seconds
        async with asyncio.TaskGroup() as tasks:
            while not self.ended:
                self._wake.clear()
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
            # An older worker serves on until the new ones do; one that never served has nothing to offer.
            if member not in wanted and (replaced or member.version == version or not member.worker.serving):
                member.retiring = True
                name = f"retire worker {member.number}"
                tasks.create_task(member.worker.stop(self._grace_seconds), name=name)

    def _start(self, tasks: asyncio.TaskGroup, model: AIModel, version: bytes, number: int) -> _Member:
        member = _Member(version, number, self._workplace.worker(model, self._revision, number, self._wake.set))
        self._members.append(member)

        async def keep() -> None:
            await member.worker.keep()
            self._members.remove(member)
            self._wake.set()

        tasks.create_task(keep(), name=f"{model.name} worker {number}")
        return member

    def report(self) -> PoolReport:
        """How the model fares now."""
        if self._model is None or replicas_of(self._model) == 0:
            return PoolReport(Phase.STOPPED)
        workers = [member.worker for member in self._members if not member.retiring]
        complaint = next((worker.message for worker in workers if worker.failing), "")
        if any(worker.serving for worker in workers):
            return PoolReport(Phase.READY, complaint)
        return PoolReport(Phase.FAILING, complaint) if complaint else PoolReport(Phase.STARTING)
