"""Workers of models as children: what `fleet` asks for, made here."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from common import names, settings
from common.manifest import AIModel
from inference.settings import InferenceSettings
from stack.children.child import Child, ChildStatus
from stack.children.processes import Process, Program, killed_on_failure, python, spawn
from stack.children.readiness import Readiness
from stack.embedded.probes import HOST
from stack.embedded.servers import write_private
from stack.ports import free_port
from stack.state import State
from stack.wiring import Wiring

_WORKER = "worker"
_MANIFESTS = "manifests"


class LocalWorkerFactory:
    """Makes workers; `children` are those that have not ended."""

    def __init__(self, state: State, wiring: Wiring, readiness: Readiness, nats_url: str, grace_seconds: float) -> None:
        self._state, self._wiring, self._readiness = state, wiring, readiness
        self._nats_url, self._grace_seconds = nats_url, grace_seconds
        self._children: list[Child] = []
        shutil.rmtree(state.folder / _MANIFESTS, ignore_errors=True)  # those of the run before

    @property
    def children(self) -> list[Child]:
        """The workers that are there, oldest first."""
        self._children = [child for child in self._children if child.status is not ChildStatus.STOPPED]
        return self._children

    def worker(self, model: AIModel, revision: int, number: int, on_change: Callable[[], None]) -> Child:
        """A worker, not yet running. A failure to start is tried again, since a model may come later."""
        name = f"{_WORKER}/{model.name}/{number}"
        socket = self._wiring.worker_socket()
        manifest = self._state.folder / _MANIFESTS / f"{names.token(model.name)}.{revision}.json"

        async def launch(on_spawn: Callable[[Process], None]) -> None:
            manifest.parent.mkdir(exist_ok=True, mode=0o700)
            write_private(manifest, model.to_json().decode())  # its `env` may hold an upstream's key
            child.metrics_address = f"{HOST}:{free_port(self._wiring.ports.values())}"
            process = spawn(self._program(name, model, manifest, revision, socket, child.metrics_address))
            on_spawn(process)
            with killed_on_failure(process):
                # No deadline: a large model may be on its way from a hub for an hour.
                addresses = await self._readiness.wait(process, ["inference"], None)
            child.address = addresses["inference"]

        child = Child(name, launch, on_change, must_start=False)
        self._children.append(child)
        return child

    def _program(self, name: str, model: AIModel, manifest: Path, revision: int, socket: str, metrics: str) -> Program:
        inference = InferenceSettings(
            manifest=manifest,
            listen=socket,
            nats_url=self._nats_url,
            revision=revision,
            drain_grace_seconds=self._grace_seconds,
            spool_dir=self._state.spool,
        )
        # A worker gets the user's own variables (proxies, hub tokens, accelerators), but not those of other children.
        outer = {
            variable: value
            for variable, value in os.environ.items()
            if not variable.startswith("UPLION_") or variable.startswith("UPLION_UPSTREAM_")
        }
        ours = self._wiring.process_environment(self._readiness.address, metrics)
        return Program(
            name=name,
            argv=python("inference"),
            log=self._state.log(name),
            env={**outer, **ours, **model.spec.env, **settings.dump(inference)},
        )
