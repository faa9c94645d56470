"""The supervisor: starts the children of a stack in parallel, keeps them running, and ends them in order."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common import manifest, names
from common.lifecycle import forever
from common.manifest import AIModel, ManifestError
from stack import disk, ports
from stack.assembly import Assembly
from stack.children.child import Child
from stack.children.readiness import readiness
from stack.children.watchdog import Watchdog
from stack.embedded import binaries, http
from stack.errors import StackError
from stack.settings import StackSettings, default_manifest
from stack.sockets import socket_folder
from stack.state import State

if TYPE_CHECKING:
    from fleet.pools import PoolReport

_ANSWER_TIMEOUT_SECONDS = 60.0
_ANSWER_EVERY_SECONDS = 0.02
_END_SECONDS = 10.0  # for what holds no requests any more
_LOGS_EVERY_SECONDS = 5.0


class Supervisor:
    """One stack. `run` returns when it has been stopped, or raises StackError; nothing is left running either way."""

    def __init__(self, settings: StackSettings, on_change: Callable[["Supervisor"], None] | None = None) -> None:
        self.settings = settings
        self.state = State(settings.state)
        self.status = "starting"
        self.message = ""
        self.models: list[str] = []  # that this start waits for: those given first
        self.started_at = time.time()
        self._on_change = on_change
        self._assembly: Assembly | None = None
        self._fleet_reports: Mapping[str, PoolReport] = {}
        self._fleet_changed = asyncio.Event()

    @property
    def children(self) -> list[Child]:
        """All children there are now."""
        return self._assembly.children if self._assembly else []

    async def run(self, stop: asyncio.Event, now: asyncio.Event) -> None:
        """Runs until `stop`, then lets everything finish in order; `now` cuts that short."""
        models = read_manifests(self.settings)
        disk.check(self.settings)
        self.state.create()
        with self.state.held():
            try:
                self._check()
                with socket_folder(self.state.folder) as sockets, readiness(sockets / "notify") as listener:
                    assembly = self._assembly = Assembly(self.settings, self.state, sockets, listener, self._changed)
                    await self._run(assembly, models, stop, now)
            except Exception as problem:  # the root of all tasks: one sentence where it is no bug of ours
                self._say("failed", sentence(problem) or repr(problem))
                if not sentence(problem):
                    raise
                raise StackError(sentence(problem)) from problem
            self._say("stopped")

    def _check(self) -> None:
        for binary in (binaries.envoy, binaries.postgres, binaries.valkey, binaries.nats):
            binary()
        port = self.settings.port
        if port and not ports.is_free(port):
            raise StackError(f"port {port} is in use by another program; choose another with --port")

    async def _run(
        self, assembly: Assembly, models: Sequence[AIModel], stop: asyncio.Event, now: asyncio.Event
    ) -> None:
        await assembly.check_external()
        end_fleet = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for child in assembly.fixed:
                tasks.create_task(child.keep(), name=f"keep {child.name}")
            fleet = tasks.create_task(self._run_fleet(assembly, models, end_fleet), name="fleet")
            ending = tasks.create_task(self._end_at_once(now), name="end at once")
            grace_seconds = 0.0
            watchdog = Watchdog(assembly.fixed, lambda: assembly.children, self.state.beat)
            async with forever({"bound logs": self._bound_logs, "watchdog": watchdog.run}):
                try:
                    if await self._until_answering(assembly, models, stop):
                        self._say("ready")
                        await stop.wait()
                        grace_seconds = self.settings.grace_seconds
                finally:
                    self._say("stopping")
                    await self._end(assembly, fleet, end_fleet, grace_seconds)
                    ending.cancel()

    async def _run_fleet(self, assembly: Assembly, models: Sequence[AIModel], stop: asyncio.Event) -> None:
        await asyncio.sleep(0)  # the servers are spawned first, and start while the NATS client is imported (0.1 s)
        from fleet import app
        from fleet.settings import FleetSettings
        from messaging.bus import NoRoomError

        await assembly.nats_ready()

        def on_report(reports: Mapping[str, "PoolReport"]) -> None:
            self._fleet_reports = reports
            self._fleet_changed.set()
            self._changed()

        settings = FleetSettings(nats_url=assembly.urls.nats, drain_grace_seconds=self.settings.grace_seconds)
        try:
            await app.main(settings, stop, assembly.workers, models, on_report)
        except NoRoomError as problem:
            raise StackError(str(problem)) from problem

    async def _until_answering(self, assembly: Assembly, models: Sequence[AIModel], stop: asyncio.Event) -> bool:
        """True when a real request was answered and every model given has a worker; False when stopped before."""
        async with asyncio.TaskGroup() as tasks:
            stopped = tasks.create_task(stop.wait(), name="stopped while starting")
            answering = tasks.create_task(self._answering(assembly, models), name="first answer")
            await asyncio.wait({stopped, answering}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            answering.cancel()
        return not stop.is_set()

    async def _answering(self, assembly: Assembly, models: Sequence[AIModel]) -> None:
        for child in assembly.fixed:
            await child.ready.wait()
        headers = {"authorization": f"Bearer {self.state.first_key('api_key')}"}
        deadline = time.monotonic() + _ANSWER_TIMEOUT_SECONDS
        while True:
            status, body = await http.request(self.public_address, "GET", "/v1/models", headers)
            if status == 200:
                break
            if time.monotonic() > deadline:
                raise StackError(f"the first request was answered with {status}: {body.decode(errors='replace')[:300]}")
            await asyncio.sleep(_ANSWER_EVERY_SECONDS)
        stored = [str(model["id"]) for model in json.loads(body)["data"]]
        given = [model.name for model in models]
        self.models = [*given, *(name for name in stored if name not in given)]
        while waiting := [name for name in self.models if not self._has_worker(name, must=name in given)]:
            self.message = f"waiting for {', '.join(waiting)}"
            self._fleet_changed.clear()
            await self._fleet_changed.wait()

    def _has_worker(self, model: str, *, must: bool) -> bool:
        """Whether nothing more is to be waited for; a model of an earlier start may fail without ending this one."""
        report = self._fleet_reports.get(names.token(model))
        if report is None:
            return False
        if report.phase.value == "failing" and must:
            raise StackError(f"the model {model} cannot start: {report.message}")
        return report.phase.value in ("ready", "stopped", "failing")

    async def _end(
        self, assembly: Assembly, fleet: asyncio.Task[None], end_fleet: asyncio.Event, grace_seconds: float
    ) -> None:
        """From the door inwards, so that what runs can finish and be counted: proxy, workers, services, servers."""
        deadline = time.monotonic() + grace_seconds
        if grace_seconds and assembly.envoy.serving:
            await assembly.proxy.drain(grace_seconds)
        await assembly.envoy.stop(_END_SECONDS)
        end_fleet.set()
        left_seconds = max(deadline - time.monotonic(), 0.0) + _END_SECONDS
        await asyncio.wait({fleet}, timeout=left_seconds if grace_seconds else 0.0)
        fleet.cancel()
        left_seconds = max(deadline - time.monotonic(), _END_SECONDS if grace_seconds else 1.0)
        await asyncio.gather(*(child.stop(left_seconds) for child in [*assembly.workers.children, *assembly.services]))
        await asyncio.gather(*(child.stop(_END_SECONDS) for child in assembly.servers))

    async def _end_at_once(self, now: asyncio.Event) -> None:
        await now.wait()
        for child in self.children:
            child.end_now()

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(_LOGS_EVERY_SECONDS)
            with contextlib.suppress(OSError):  # a full disk must not end what still runs
                self.state.bound_logs()

    @property
    def public_address(self) -> str:
        """host:port of the public listener."""
        assert self._assembly is not None
        return self._assembly.wiring.public_address

    def report(self) -> dict[str, Any]:
        """The content of the run file: all that `uplion up --json` and `uplion status` need, but for the keys."""
        report: dict[str, Any] = {
            "status": self.status,
            "message": self.message,
            "pid": os.getpid(),
            "started_at": self.started_at,
            "state_dir": str(self.state.folder),
            "models": self.models,
        }
        if (assembly := self._assembly) is not None:
            wiring, urls = assembly.wiring, assembly.urls
            report |= {
                "base_url": f"http://{wiring.public_address}/v1",
                "grpc_address": wiring.public_address,
                "admin_url": f"http://{wiring.admin_address}/admin/v1",
                "admin_address": wiring.admin_address,
                "postgres_url": urls.postgres,
                "redis_url": urls.redis,
                "nats_url": urls.nats,
                "external": sorted(assembly.external),
                "parts": [child.report() for child in assembly.children],
            }
        return report

    def _say(self, status: str, message: str = "") -> None:
        self.status, self.message = status, message
        self._changed()

    def _changed(self) -> None:
        with contextlib.suppress(StackError):  # a full disk must not end what still runs
            self.state.write_run(self.report())
        if self._on_change is not None:
            self._on_change(self)


def read_manifests(settings: StackSettings) -> list[AIModel]:
    """The models to add at this start: those given, or the demo model where there was no start before.

    Raises StackError naming file and line.
    """
    models: list[AIModel] = []
    first = not State(settings.state).keys_file.exists()
    try:
        for path in settings.manifests or ((default_manifest(),) if first else ()):
            models += manifest.load(path)
    except ManifestError as error:
        raise StackError(f"the manifest cannot be used: {error}") from error
    found = [model.name for model in models]
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise StackError(f"the manifest cannot be used: two of them are named {twice[0]}")
    return models


def sentence(problem: BaseException) -> str:
    """The first expected problem in a group of problems, or a problem alone; empty when there is none."""
    if isinstance(problem, BaseExceptionGroup):
        return next((found for found in map(sentence, problem.exceptions) if found), "")
    if isinstance(problem, OSError):
        return f"{problem.filename or 'the system says'}: {problem.strerror or problem}"
    return str(problem) if isinstance(problem, StackError) else ""
