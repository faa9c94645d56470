"""Workers of models as children: what `fleet` asks for, made here."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from common import names, settings
from common.manifest import AIModel
from inference.settings import InferenceSettings
from stack.parts import Part, PartStatus
from stack.ports import free_port
from stack.probes import HOST
from stack.processes import Process, Program, python, spawn
from stack.readiness import Readiness
from stack.state import State
from stack.wiring import Wiring

_WORKER = "worker"
_MANIFESTS = "manifests"


class LocalWorkerFactory:
    """Makes workers; `parts` are those that have not ended."""

    def __init__(self, state: State, wiring: Wiring, readiness: Readiness, nats_url: str, grace_seconds: float) -> None:
        self._state, self._wiring, self._readiness = state, wiring, readiness
        self._nats_url, self._grace_seconds = nats_url, grace_seconds
        self._parts: list[Part] = []
        shutil.rmtree(state.folder / _MANIFESTS, ignore_errors=True)  # those of the run before

    @property
    def parts(self) -> list[Part]:
        """The workers that are there, oldest first."""
        self._parts = [part for part in self._parts if part.status is not PartStatus.STOPPED]
        return self._parts

    def worker(self, model: AIModel, revision: int, number: int, on_change: Callable[[], None]) -> Part:
        """A worker, not yet running. A failure to start is tried again, since a model may come later."""
        name = f"{_WORKER}/{model.name}/{number}"
        manifest = self._state.folder / _MANIFESTS / f"{names.token(model.name)}.{revision}.json"

        async def launch(on_spawn: Callable[[Process], None]) -> None:
            manifest.parent.mkdir(exist_ok=True)
            manifest.write_bytes(model.to_json())
            part.metrics_address = f"{HOST}:{free_port(self._wiring.ports.values())}"
            process = spawn(self._program(name, model, manifest, revision, part.metrics_address))
            on_spawn(process)
            try:
                # No deadline: a large model may be on its way from a hub for an hour.
                said = await self._readiness.wait(process, ["inference"], None)
            except BaseException:
                process.kill()
                raise
            part.address = said["inference"]

        part = Part(name, launch, on_change, must_start=False)
        self._parts.append(part)
        return part

    def _program(self, name: str, model: AIModel, manifest: Path, revision: int, metrics: str) -> Program:
        inference = InferenceSettings(
            manifest=manifest,
            nats_url=self._nats_url,
            revision=revision,
            drain_grace_seconds=self._grace_seconds,
            spool_dir=self._state.spool,
        )
        # A worker sees the user's own variables: proxies, hub tokens, accelerators. Those of other parts it does not.
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
