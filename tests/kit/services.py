"""Our services as tests run them: in this event loop, or as processes; both from their readiness on, address known."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.lifecycle import Ready
from tests.kit.until import until_sync

_SECONDS = 60.0  # a wait that only a failure makes this long
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class RunningService:
    """A `main` as a task, and where it listens."""

    address: str  # host:port; empty when it serves nothing
    stop: asyncio.Event
    task: "asyncio.Task[None]"


@asynccontextmanager
async def running(
    main: Callable[[Settings, asyncio.Event, Ready], Awaitable[None]], settings: Settings
) -> AsyncIterator[RunningService]:
    """Runs a service in this event loop; leaving stops it, and fails when it failed."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def service() -> None:
        await main(settings, stop, ready.set_result)

    task = asyncio.create_task(service())
    try:
        begun: set[asyncio.Future[Any]] = {task, ready}
        await asyncio.wait(begun, timeout=_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        assert ready.done(), f"{main.__module__} was not ready within {_SECONDS:g} s"
        yield RunningService(ready.result(), stop, task)
        stop.set()
        async with asyncio.timeout(_SECONDS):
            await task
    finally:
        task.cancel()
        await asyncio.wait([task])


class ServiceProcess:
    """`python -m module`, with the names of services when the module is `stack.services`; its log is in a file."""

    def __init__(self, module: str, *services: str, environment: Mapping[str, str], folder: Path) -> None:
        self._services = services or (module,)
        self.log = folder / f"{'-'.join(self._services)}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *services],
                env={**os.environ, **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            self.addresses: dict[str, str] = until_sync(self._ready, _SECONDS)  # by service
        except AssertionError:
            self.stop()
            raise

    @property
    def address(self) -> str:
        """Of the only service."""
        (address,) = self.addresses.values()
        return address

    def port(self, service: str) -> int:
        return int(self.addresses[service].rpartition(":")[2])

    def _ready(self) -> dict[str, str] | None:
        assert self.process.poll() is None, f"{self._services} did not start:\n{self.log.read_text()[-4000:]}"
        lines = [json.loads(line) for line in self.log.read_text().split("\n")[:-1] if '"ready"' in line]
        found = {line["service"]: line["address"] for line in lines}
        return found if found.keys() >= set(self._services) else None

    def stop(self) -> int:
        """Ends it in order, or by force when that takes too long; the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
