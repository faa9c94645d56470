"""NATS, Postgres and Valkey for the benchmark, and the billing processes; and what each of them used."""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import processes
from billing.settings import BillingSettings
from common.settings import dump
from stack.children.processes import Program
from stack.embedded import servers
from stack.ports import free_port

# Enough memory for the benchmark's indexes; every commit is durable.
POSTGRES_SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "8GB"}


class Postgres(servers.Postgres):
    """The stack's, with a server's memory instead of a laptop's."""

    def program(self) -> Program:
        program = super().program()
        more = [part for name, value in POSTGRES_SETTINGS.items() for part in ("-c", f"{name}={value}")]
        return replace(program, argv=[*program.argv, *more])


@dataclass
class Machine:
    """The running servers."""

    postgres_url: str
    redis_url: str
    nats_url: str
    pids: dict[str, list[int]]  # by part
    settings: dict[str, Any]

    def cpu_seconds(self) -> dict[str, float]:
        """What every part used so far."""
        return {part: sum(processes.cpu_seconds(pid) for pid in pids) for part, pids in self.pids.items()}

    @asynccontextmanager
    async def billing(self, count: int) -> AsyncIterator[None]:
        """Real billing processes, one beside the other, from the moment they are ready."""
        settings = BillingSettings(
            postgres_url=self.postgres_url, redis_url=self.redis_url, nats_url=self.nats_url, **self.settings
        )
        environment = {**os.environ, **dump(settings)}
        started = []
        try:
            for _ in range(count):
                started.append(
                    await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", "billing"), env=environment, stdout=asyncio.subprocess.PIPE
                    )
                )
            self.pids["billing"] = [process.pid for process in started]
            for process in started:
                assert process.stdout is not None
                while b"ready" not in (line := await process.stdout.readline()):
                    if not line:
                        raise RuntimeError("billing did not start")
            yield
        finally:
            for process in started:
                if process.returncode is None:
                    process.terminate()
            for process in started:
                await process.wait()


@asynccontextmanager
async def machine(folder: Path, settings: dict[str, Any]) -> AsyncIterator[Machine]:
    """All three servers, fresh; `settings` are billing's, where they differ from its defaults."""
    kinds = {"postgres": Postgres, "valkey": servers.Valkey, "nats": servers.Nats}
    urls, pids = {}, {}
    async with AsyncExitStack() as stack:
        for name, kind in kinds.items():
            server = kind(folder / name, folder / f"{name}.log", free_port(), secrets.token_urlsafe(16))
            process = await stack.enter_async_context(servers.running(server))
            urls[name], pids[name] = server.url, [process.pid]
        yield Machine(urls["postgres"], urls["valkey"], urls["nats"], pids, settings)
