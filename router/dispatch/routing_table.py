"""The routing table: which models exist, which workers serve them. Watched in KV, swapped whole, read without locks."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import msgspec
from google.protobuf.message import DecodeError
from uplion.dispatch.v1 import worker_state_pb2
from uplion.dispatch.v1.worker_state_pb2 import CAPABILITY_RESUME, WorkerState

from common import manifest, names
from common.errors import Reason, UplionError
from common.identity import Identity
from common.lifecycle import run_forever
from common.operations import Capability
from messaging.bus import WORKER_TTL_SECONDS, Change
from messaging.connection import poison

logger = logging.getLogger(__name__)
_poison_models, _poison_workers = poison(names.KV_MODELS), poison(names.KV_WORKERS)

# As workers say it in their state.
_MESSAGE_VALUES = {each: worker_state_pb2.Capability.Value(f"CAPABILITY_{each.name}") for each in Capability}


@dataclass(frozen=True, slots=True)
class Route:
    """One model, and what its workers can do together."""

    name: str
    created: int  # unix seconds
    revision: int
    workers: int = 0  # that take work now
    context_tokens: int = 0  # 0: not known
    capabilities: frozenset[int] = frozenset()  # that some worker has
    unmetered: bool = False  # no worker can have its usage stored
    can_resume: bool = False  # all workers can go on after another one's tokens


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All models and workers at one moment."""

    routes: MappingProxyType[str, Route] = field(default_factory=lambda: MappingProxyType({}))
    addresses: frozenset[str] = frozenset()  # of all workers, draining ones included

    def route(self, model: str) -> Route:
        found = self.routes.get(model)
        if found is None:
            raise UplionError(
                Reason.MODEL_NOT_FOUND,
                f"The model '{model[:200]}' does not exist or you do not have access to it.",
                param="model",
            )
        return found

    def shown_to(self, identity: Identity) -> "Snapshot":
        """The same without the models that the caller may not use: to it they do not exist."""
        if not identity.models:
            return self
        shown = {name: route for name, route in self.routes.items() if identity.may_use(name)}
        return Snapshot(MappingProxyType(shown), self.addresses)


class Watching(Protocol):
    """What the table needs of the bus."""

    def watch(
        self, bucket: str, *, ttl_seconds: float | None = None, known: Iterable[str] = ()
    ) -> AsyncIterator[Change | None]:
        """Every entry, then None, then every change."""


class WorkerObserver(Protocol):
    """What is to be informed of workers."""

    def worker_gone(self, worker_id: str) -> None:
        """A worker's entry has expired, or was deleted, and it was not draining."""


class RoutingTable:
    """Keeps `snapshot` current. `run` is its task; `ready` is set once both buckets were read to their end."""

    def __init__(self, bus: Watching) -> None:
        self._bus = bus
        self._observer: WorkerObserver | None = None
        self._heard: Callable[[str], None] | None = None
        self._models: dict[str, tuple[manifest.AIModel, int, int]] = {}  # by key: manifest, created, revision
        self._workers: dict[str, WorkerState] = {}  # by key
        self._synced: set[str] = set()
        self.snapshot = Snapshot()
        self.ready = asyncio.Event()
        self.changed = asyncio.Event()  # set at every new snapshot; the one waiter clears it

    def observe(self, observer: WorkerObserver) -> None:
        """Informs `observer` from now on."""
        self._observer = observer

    def on_heartbeat(self, heard: Callable[[str], None]) -> None:
        """Calls `heard` with the worker's id at each renewal of an entry from now on."""
        self._heard = heard

    def knows(self, model: str) -> bool:
        """Whether there is such a model now."""
        return model in self.snapshot.routes

    async def run(self) -> None:
        """Watches both buckets; never returns."""
        await run_forever({"watch the models": self._watch_models, "watch the workers": self._watch_workers})

    async def _watch_models(self) -> None:
        async for change in self._bus.watch(names.KV_MODELS, known=self._models):
            if change is None:
                self._sync(names.KV_MODELS)
            else:
                with _poison_models:
                    self._on_model(change)

    async def _watch_workers(self) -> None:
        async for change in self._bus.watch(names.KV_WORKERS, ttl_seconds=WORKER_TTL_SECONDS, known=self._workers):
            if change is None:
                self._sync(names.KV_WORKERS)
            else:
                with _poison_workers:
                    self._on_worker(change)

    def _sync(self, bucket: str) -> None:
        self._synced.add(bucket)
        if len(self._synced) == 2:
            self._swap()
            self.ready.set()

    def _on_model(self, change: Change) -> None:
        if change.value is None:
            self._models.pop(change.key, None)
        else:
            try:
                model = manifest.from_entry(change.key, change.value)
            except (msgspec.MsgspecError, ValueError) as problem:
                logger.error("manifest in KV is not valid", extra={"key": change.key, "problem": str(problem)})
                return
            known = self._models.get(change.key)
            created = known[1] if known else int(change.created_seconds or time.time())
            self._models[change.key] = (model, created, change.revision)
        self._swap()

    def _on_worker(self, change: Change) -> None:
        before = self._workers.get(change.key)
        if change.value is None:
            self._workers.pop(change.key, None)
            self._swap()
            if self._observer is not None and before is not None and not before.draining:
                self._observer.worker_gone(before.worker_id)
            return
        try:
            state = WorkerState.FromString(change.value)
            if state.worker_id != change.key or not state.address or not state.model:
                raise DecodeError("not a worker's own state")
        except DecodeError:
            logger.error("worker state in KV is not valid", extra={"key": change.key})
            return
        self._workers[change.key] = state
        if self._heard is not None:
            self._heard(state.worker_id)
        if before is None or _routing(before) != _routing(state):  # renewals change nothing
            self._swap()

    def _swap(self) -> None:
        if len(self._synced) < 2:
            return
        by_model: dict[str, list[WorkerState]] = {}
        for state in self._workers.values():
            if not state.draining:
                by_model.setdefault(state.model, []).append(state)
        routes = {
            model.name: _route(model.name, created, revision, by_model.get(model.name, []))
            for model, created, revision in self._models.values()
        }
        addresses = frozenset(state.address for state in self._workers.values())
        self.snapshot = Snapshot(MappingProxyType(routes), addresses)
        self.changed.set()

    def route(self, model: str, capability: Capability) -> Route:
        """The route of a model; raises MODEL_NOT_FOUND, or INVALID_REQUEST where no worker has the capability."""
        route = self.snapshot.route(model)
        if route.capabilities and _MESSAGE_VALUES[capability] not in route.capabilities:
            raise UplionError(
                Reason.INVALID_REQUEST, f"The model '{model}' does not support {capability.value}s.", param="model"
            )
        return route


def _routing(state: WorkerState) -> tuple[object, ...]:
    fields = (state.address, state.model, state.draining, state.unmetered, state.context_tokens)
    return (*fields, tuple(state.capabilities))


def _route(name: str, created: int, revision: int, workers: list[WorkerState]) -> Route:
    return Route(
        name=name,
        created=created,
        revision=revision,
        workers=len(workers),
        context_tokens=min((state.context_tokens for state in workers if state.context_tokens), default=0),
        capabilities=frozenset(capability for state in workers for capability in state.capabilities),
        unmetered=bool(workers) and all(state.unmetered for state in workers),
        can_resume=bool(workers) and all(CAPABILITY_RESUME in state.capabilities for state in workers),
    )
