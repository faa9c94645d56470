"""Envoy as a child: rendered by `python -m edge`, started, and drained so that running requests finish."""

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from common import settings
from edge.settings import EdgeSettings
from stack.children.processes import Process, Program, base_environment, killed_on_failure, python, spawn
from stack.embedded import binaries, http
from stack.errors import StackError
from stack.ports import is_free
from stack.settings import default_cache

_RENDER_TIMEOUT_SECONDS = 60.0
_START_TIMEOUT_SECONDS = 60.0
_PROBE_EVERY_SECONDS = 0.02
_CONCURRENCY_MAX = 4


class Proxy:
    """One Envoy."""

    def __init__(self, edge: EdgeSettings, folder: Path, log: Path) -> None:
        self._edge, self._folder, self._log = edge, folder, log
        self._bootstrap = folder / "bootstrap.json"

    async def render(self) -> None:
        """Writes Envoy's configuration: a tenth of a second where the cache has its template, seconds where not."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._folder / "bootstrap.new"
        process = spawn(
            Program(
                name="edge",
                argv=python("edge", "--cache", str(default_cache())),
                log=self._log,
                output=fresh,
                env={**base_environment(), **settings.dump(self._edge)},
            )
        )
        try:
            async with asyncio.timeout(_RENDER_TIMEOUT_SECONDS):
                code = await process.wait()
        except TimeoutError:
            raise StackError("Envoy's configuration takes too long to make; try again") from None
        finally:
            process.kill()
        if code != 0:
            raise StackError(f"Envoy's configuration cannot be made: {process.why_it_ended()}")
        fresh.rename(self._bootstrap)

    async def launch(self, on_spawn: Callable[[Process], None]) -> None:
        """Starts Envoy and returns once it listens."""
        process = spawn(
            Program(
                name="envoy",
                argv=[
                    str(binaries.envoy()),
                    *("--config-path", str(self._bootstrap)),
                    *("--concurrency", str(min(os.cpu_count() or 1, _CONCURRENCY_MAX))),
                    *("--drain-strategy", "immediate"),
                    *("--log-level", "warning"),
                    "--disable-hot-restart",
                ],
                log=self._log,
                env=base_environment(),
            )
        )
        on_spawn(process)
        with killed_on_failure(process):
            await self._until_live(process)

    async def _until_live(self, process: Process) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while (await http.request(self._edge.envoy_admin_address, "GET", "/ready"))[0] != 200:
            if process.returncode is not None:
                host, _, port = self._edge.public_address.rpartition(":")
                if not is_free(int(port), host):
                    raise StackError(f"port {port} was taken by another program while starting; choose another --port")
                raise StackError(f"Envoy ended while starting, {process.why_it_ended()}; see {self._log}")
            if time.monotonic() > deadline:
                raise StackError(f"Envoy was not ready within {_START_TIMEOUT_SECONDS:.0f} s; see {self._log}")
            await asyncio.sleep(_PROBE_EVERY_SECONDS)

    async def drain(self, grace_seconds: float) -> None:
        """Takes no new connections, asks clients to leave, and waits for running requests within the grace."""
        admin = self._edge.envoy_admin_address
        deadline = time.monotonic() + grace_seconds
        if (await http.request(admin, "POST", "/healthcheck/fail", timeout_seconds=grace_seconds))[0] != 200:
            return
        await http.request(admin, "POST", "/drain_listeners?graceful&skip_exit")
        await http.request(admin, "POST", "/drain_listeners?skip_exit")
        while await self._active_requests() != 0 and time.monotonic() < deadline:  # noqa: ASYNC110 - Envoy is asked
            await asyncio.sleep(_PROBE_EVERY_SECONDS)

    async def _active_requests(self) -> int | None:
        """None: Envoy does not answer."""
        path = "/stats?format=json&filter=^http\\..*\\.downstream_rq_active$"
        status, body = await http.request(self._edge.envoy_admin_address, "GET", path)
        if status != 200:
            return None
        found = json.loads(body)["stats"]
        return int(sum(stat.get("value", 0) for stat in found if "admin" not in stat.get("name", "")))
