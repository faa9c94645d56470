"""Real NATS, Postgres and Valkey for the tests: one of each for the session, on loopback, ended with it.

A missing binary skips the test on a laptop and fails it in CI (CI=1 or UPLION_REQUIRE_SERVERS=1).
"""

import asyncio
import os
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from stack.children.processes import Process
from stack.embedded import servers
from stack.errors import StackError
from stack.ports import free_port
from tests.kit.processes import children
from tests.kit.until import until

_STOP_SECONDS = 30.0
_END_SECONDS = 60.0


@dataclass
class RunningServer:
    """An embedded server that a test may kill and start again."""

    server: servers.Server
    process: Process

    @property
    def url(self) -> str:
        """How to reach it, password included."""
        return self.server.url

    async def kill(self) -> None:
        """Ends it as a crash would, and returns when its children are gone too: Postgres' serve for a moment more."""
        family = [f"/proc/{child}" for child in children(self.process.pid)]
        self.process.kill()
        await until(lambda: not any(map(os.path.exists, family)), _END_SECONDS)

    async def start(self) -> None:
        """Starts it again at the same address, with the data it had."""
        self.process = await servers.start(self.server)

    async def stop(self) -> None:
        """Ends it in order."""
        await self.process.stop(_STOP_SECONDS)


class SmallNats(servers.Nats):
    """Its streams may hold so many megabytes on disk."""

    def __init__(self, megabytes: int, folder: Path, log: Path, port: int, password: str) -> None:
        super().__init__(folder, log, port, password)
        self._configuration, self._megabytes = folder / "nats.conf", megabytes

    async def prepare(self) -> None:
        await super().prepare()
        text = self._configuration.read_text()
        assert "max_file_store: 1TB" in text
        servers.write_private(
            self._configuration, text.replace("max_file_store: 1TB", f"max_file_store: {self._megabytes}MB")
        )


ServerFactory = Callable[[str], RunningServer]
_KINDS: dict[str, Callable[[Path, Path, int, str], servers.Server]] = {
    "nats": servers.Nats,
    "nats of 200 MB": partial(SmallNats, 200),
    "nats of 300 MB": partial(SmallNats, 300),
    "postgres": servers.Postgres,
    "valkey": servers.Valkey,
}


def _start(kind: str, folder: Path) -> RunningServer:
    async def start() -> RunningServer:
        server = _KINDS[kind](folder / kind, folder / f"{kind}.log", free_port(), secrets.token_urlsafe(16))
        return RunningServer(server, await servers.start(server))

    try:
        return asyncio.run(start())
    except StackError as error:
        if "not installed" in str(error) and not _must_have_servers():
            pytest.skip(str(error))
        raise


def _must_have_servers() -> bool:
    return bool(os.environ.get("CI") or os.environ.get("UPLION_REQUIRE_SERVERS"))


def _session_server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    running = _start(kind, tmp_path_factory.mktemp(kind))
    yield running.url
    asyncio.run(running.stop())


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A NATS with JetStream, shared by the session: use names of your own."""
    yield from _session_server("nats", tmp_path_factory)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey, shared by the session: use keys of your own."""
    yield from _session_server("valkey", tmp_path_factory)


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Postgres, shared by the session; `postgres_database` gives a database of one's own."""
    yield from _session_server("postgres", tmp_path_factory)


@pytest.fixture
async def postgres_database(postgres_url: str) -> AsyncIterator[str]:
    """The URL of a fresh, empty database that is gone after the test."""
    import asyncpg

    name = f"test_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
        yield f"{postgres_url.rpartition('/')[0]}/{name}"
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await connection.close()


def _server_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerFactory]:
    started: list[RunningServer] = []

    def start(kind: str) -> RunningServer:
        running = _start(kind, tmp_path_factory.mktemp(kind))
        started.append(running)
        return running

    yield start
    for running in started:
        running.process.kill()


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerFactory]:
    """Starts a server of the test's own ("nats", "postgres", "valkey") that it may kill and start again."""
    yield from _server_factory(tmp_path_factory)


@pytest.fixture(scope="module")
def start_module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerFactory]:
    """As start_server, for all tests of a module."""
    yield from _server_factory(tmp_path_factory)
