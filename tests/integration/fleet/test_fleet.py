"""The fleet with a real NATS and real worker processes; their engine is synthetic."""

import asyncio
import functools
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats.errors
from uplion.dispatch.v1.worker_state_pb2 import WorkerState

from common import names
from common.manifest import AIModel, from_object
from fleet import app
from fleet.pools import Phase, PoolReport
from fleet.settings import FleetSettings
from messaging.bus import Bus, connect_bus
from stack.children.readiness import readiness
from stack.children.workers import LocalWorkerFactory
from stack.settings import StackSettings
from stack.sockets import socket_folder
from stack.state import State
from stack.wiring import Wiring
from tests.kit import until as kit


def a_model(name: str = "m", **spec: object) -> AIModel:
    return from_object(
        {
            "apiVersion": "model.youxam.com/v1alpha1",
            "kind": "AIModel",
            "metadata": {"name": name},
            "spec": {"type": "local", "model": "x", "engine": "synthetic", **spec},
        }
    )


@dataclass
class Fleet:
    """A running fleet and what it says."""

    bus: Bus
    factory: LocalWorkerFactory
    reports: dict[str, PoolReport] = field(default_factory=dict)

    def on_report(self, reports: Mapping[str, PoolReport]) -> None:
        self.reports = dict(reports)

    async def put(self, model: AIModel) -> None:
        await (await self.bus.js.key_value(names.KV_MODELS)).put(names.token(model.name), model.to_json())

    async def delete(self, name: str) -> None:
        await (await self.bus.js.key_value(names.KV_MODELS)).delete(names.token(name))

    async def told(self, name: str) -> dict[str, str]:
        """What KV `fleet` says of a model; empty when nothing."""
        try:
            entry = await (await self.bus.js.key_value(names.KV_FLEET)).get(names.token(name))
        except Exception:  # any of several "not found" errors
            return {}
        return dict(json.loads(entry.value or b"{}"))

    async def states(self) -> list[WorkerState]:
        """What workers say of themselves in KV `workers`."""
        return [WorkerState.FromString(entry.value or b"") for entry in await self.bus.snapshot(names.KV_WORKERS)]

    def pids(self) -> list[int]:
        return [part.process.pid for part in self.factory.children if part.serving and part.process]


until = functools.partial(kit.until, seconds=90.0, ignoring=(nats.errors.Error, TimeoutError))


@asynccontextmanager
async def running_fleet(nats_url: str, folder: Path, *models: AIModel) -> AsyncIterator[Fleet]:
    """A fleet for the length of a block; no worker outlives it."""
    state = State(folder)
    state.create()
    stop = asyncio.Event()
    with socket_folder(folder) as sockets, readiness(sockets / "notify") as heard:
        wiring = Wiring(StackSettings(folder), state, sockets)
        factory = LocalWorkerFactory(state, wiring, heard, nats_url, grace_seconds=5.0)
        async with connect_bus(nats_url, "test") as bus:
            fleet = Fleet(bus, factory)
            settings = FleetSettings(nats_url=nats_url, drain_grace_seconds=5.0)
            task = asyncio.create_task(app.main(settings, stop, factory, models, fleet.on_report))
            try:
                yield fleet
            finally:
                stop.set()
                await asyncio.wait_for(task, 60)
    assert factory.children == []


async def test_a_model_comes_changes_crashes_and_goes(start_server: Callable[[str], Any], tmp_path: Path) -> None:
    """One story, since each of its workers takes a while to start."""
    server = await asyncio.to_thread(start_server, "nats")
    async with running_fleet(server.url, tmp_path, a_model()) as fleet:
        await until(lambda: fleet.reports.get("m") == PoolReport(Phase.READY))
        await until(lambda: _is(fleet, "m", "ready"))
        (first,) = fleet.pids()

        os.kill(first, signal.SIGKILL)  # a crash: it is started again
        await until(lambda: fleet.pids() not in ([], [first]))
        assert fleet.factory.children[0].restarts == 1
        (second,) = fleet.pids()

        await fleet.put(a_model(replicas=2))  # more of the same: nobody is replaced
        await until(lambda: len(fleet.pids()) == 2)
        assert second in fleet.pids()
        before = fleet.pids()

        await fleet.put(a_model(replicas=1, maxProcessNum=3))  # another version: all are
        await until(lambda: len(fleet.pids()) == 1 and fleet.pids()[0] not in before)
        await until(lambda: len(fleet.factory.children) == 1)

        async def newest() -> bool:
            return [state.slots_total for state in await fleet.states() if not state.draining] == [3]

        await until(newest)

        await fleet.put(a_model(replicas=0))
        await until(lambda: fleet.reports.get("m") == PoolReport(Phase.STOPPED) and not fleet.factory.children)
        await fleet.delete("m")
        await until(lambda: "m" not in fleet.reports)
        await until(lambda: _gone(fleet, "m"))


async def _is(fleet: Fleet, name: str, phase: str) -> bool:
    return (await fleet.told(name)).get("phase") == phase


async def _gone(fleet: Fleet, name: str) -> bool:
    return not await fleet.told(name)


async def test_what_cannot_run_is_said_and_disturbs_nobody(start_server: Callable[[str], Any], tmp_path: Path) -> None:
    server = await asyncio.to_thread(start_server, "nats")
    broken = from_object({**json.loads(a_model("broken").to_json()), "spec": {"type": "remote", "model": "rented"}})
    async with running_fleet(server.url, tmp_path, a_model(), broken) as fleet:
        await until(lambda: fleet.reports.get("m") == PoolReport(Phase.READY))
        await (await fleet.bus.js.key_value(names.KV_MODELS)).put("odd", b'{"kind": "Other"}')
        await until(lambda: fleet.reports.get("broken") and fleet.reports["broken"].phase is Phase.FAILING)
        assert "ended while starting" in fleet.reports["broken"].message
        await until(lambda: fleet.reports.get("odd") and "cannot be used" in fleet.reports["odd"].message)
        assert (await until(lambda: fleet.told("odd")))["phase"] == "failing"
        assert fleet.pids()


async def test_workers_outlive_a_nats_that_restarts(start_server: Callable[[str], Any], tmp_path: Path) -> None:
    server = await asyncio.to_thread(start_server, "nats")
    async with running_fleet(server.url, tmp_path, a_model()) as fleet:
        await until(lambda: fleet.reports.get("m") == PoolReport(Phase.READY))
        (pid,) = fleet.pids()
        await server.kill()
        await server.start()
        # The bucket was in memory: it is made again and told again.
        assert (await until(lambda: fleet.told("m")))["phase"] == "ready"
        await fleet.put(a_model(replicas=2))
        await until(lambda: len(fleet.pids()) == 2)
        assert pid in fleet.pids()
