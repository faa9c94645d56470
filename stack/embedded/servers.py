"""Postgres, Valkey and NATS as children: how each is prepared, started, asked whether it is ready, and ended.

All listen on loopback only, with generated passwords that stay in files of mode 0600 in the state folder.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from stack import disk
from stack.children.processes import Process, Program, base_environment, spawn
from stack.embedded import binaries
from stack.embedded.probes import HOST, USER, answer, nats_facts, postgres_accepts
from stack.errors import PortTakenError, StackError
from stack.ports import is_free

START_TIMEOUT_SECONDS = 60.0
_PROBE_EVERY_SECONDS = 0.01
_STOP_SECONDS = 10.0


class Server(Protocol):
    """What the stack needs of an embedded server."""

    name: str
    url: str
    address: str

    async def prepare(self) -> None:
        """Writes its files; may take a second the first time."""

    def program(self) -> Program:
        """What to run."""

    async def ready(self) -> bool:
        """Asks once whether it serves."""


def write_private(path: Path, text: str) -> None:
    """Replaces a file that only its owner may read."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:  # a path in it may be any bytes
        file.write(text)
    fresh.rename(path)


def quoted(text: str) -> str:
    """A text as the configurations of Valkey and NATS have it: with these escapes of JSON, and no others."""
    return json.dumps(text, ensure_ascii=False)


class Postgres:
    """PostgreSQL, tuned small; every commit is durable."""

    name = "postgres"

    def __init__(self, folder: Path, log: Path, port: int, password: str) -> None:
        self._folder, self._log, self._port, self._password = folder, log, port, password
        self._data = folder / "data"
        self.address = f"{HOST}:{port}"
        self.url = f"postgres://{USER}:{password}@{self.address}/postgres"

    async def prepare(self) -> None:
        """Creates the database files once; a half-made folder of a killed start is made anew."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._until_predecessor_ended()
        if (self._data / "PG_VERSION").exists() and not self._half_made.exists():
            return
        self._half_made.touch()
        shutil.rmtree(self._data, ignore_errors=True)
        password_file = self._folder / "password"
        write_private(password_file, self._password)
        process = spawn(self._initdb(password_file))
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                code = await process.wait()
        except TimeoutError:
            raise StackError(f"Postgres takes too long to create its files in {self._data}; see {self._log}") from None
        finally:
            process.kill()
            password_file.unlink(missing_ok=True)
        if code != 0:
            raise StackError(f"Postgres cannot create its files in {self._data}: {process.why_it_ended()}")
        self._half_made.unlink()

    async def _until_predecessor_ended(self) -> None:
        """The postmaster of a killed stack may take a moment to end; two on the same files would be worse."""
        deadline = time.monotonic() + _STOP_SECONDS
        while (pid := self._postmaster_pid()) is not None and _runs_postgres(pid):
            if time.monotonic() > deadline:
                raise StackError(f"another Postgres (pid {pid}) still uses {self._data}; end it first")
            await asyncio.sleep(_PROBE_EVERY_SECONDS)

    def _postmaster_pid(self) -> int | None:
        try:
            return int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None

    @property
    def _half_made(self) -> Path:
        return self._folder / disk.HALF_MADE

    def _initdb(self, password_file: Path) -> Program:
        options = ["--no-sync", "--no-instructions", "--locale=C", "--encoding=UTF8", "--auth=scram-sha-256"]
        argv = [str(binaries.postgres("initdb")), f"--pgdata={self._data}", f"--username={USER}"]
        return self._program("initdb", [*argv, f"--pwfile={password_file}", *options])

    def program(self) -> Program:
        """The postmaster. SIGINT: end sessions and stop; SIGQUIT when orphaned: stop at once, its backends too."""
        settings = {
            "listen_addresses": HOST,
            "port": str(self._port),
            "unix_socket_directories": "",
            "shared_buffers": "32MB",
            "max_connections": "60",
            "max_wal_size": f"{disk.LOG_BYTES >> 20}MB",
            "wal_level": "minimal",
            "max_wal_senders": "0",
            "io_method": "sync",
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
        }
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return self._program(self.name, [str(binaries.postgres()), "-D", str(self._data), *arguments])

    def _program(self, name: str, argv: list[str]) -> Program:
        return Program(
            name=name,
            argv=argv,
            log=self._log,
            env={**base_environment(), "TZ": "UTC"},
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGQUIT,
            not_as_root=True,
        )

    async def ready(self) -> bool:
        """It accepts sessions."""
        return await postgres_accepts(self.address)


class Valkey:
    """Valkey with an append-only file: a kill loses nothing, a power loss at most a second."""

    name = "valkey"

    def __init__(self, folder: Path, log: Path, port: int, password: str) -> None:
        self._folder, self._log, self._port, self._password = folder, log, port, password
        self.address = f"{HOST}:{port}"
        self.url = f"redis://:{password}@{self.address}/0"

    async def prepare(self) -> None:
        """Writes its configuration."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = [
            f"bind {HOST}",
            f"port {self._port}",
            f"requirepass {self._password}",
            f"dir {quoted(str(self._folder))}",
            "daemonize no",
            'save ""',
            "appendonly yes",
            "appendfsync everysec",
            "maxmemory 256mb",
            "maxmemory-policy noeviction",
            "loglevel warning",
        ]
        write_private(self._folder / "valkey.conf", "\n".join(lines) + "\n")

    def program(self) -> Program:
        """The server."""
        return Program(
            name=self.name,
            argv=[str(binaries.valkey()), str(self._folder / "valkey.conf")],
            log=self._log,
            env=base_environment(),
        )

    async def ready(self) -> bool:
        """It answers a ping once its data is loaded."""
        request = f"AUTH {self._password}\r\nPING\r\n".encode()
        return await answer(self.address, request, len(b"+OK\r\n+PONG")) == b"+OK\r\n+PONG"


class Nats:
    """NATS with JetStream. Its files survive a kill at once, and a power loss but for the last seconds."""

    name = "nats"

    def __init__(self, folder: Path, log: Path, port: int, password: str) -> None:
        self._folder, self._log, self._port, self._password = folder, log, port, password
        self.address = f"{HOST}:{port}"
        self.url = f"nats://{USER}:{password}@{self.address}"

    async def prepare(self) -> None:
        """Writes its configuration.

        Its bound of what streams may hold on disk is one that none reaches. Unset it is three quarters of what is free,
        of which every stream's own bound is taken off: streams that are there could not be made again on a full disk.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        configuration = f"""\
server_name: uplion
listen: {quoted(self.address)}
authorization {{ user: {USER}, password: {quoted(self._password)} }}
jetstream {{
  store_dir: {quoted(str(self._folder))}
  max_memory_store: 256MB
  max_file_store: 1TB
  sync_interval: "5s"
}}
"""
        write_private(self._folder / "nats.conf", configuration)

    def program(self) -> Program:
        """The server."""
        return Program(
            name=self.name,
            argv=[str(binaries.nats()), "--config", str(self._folder / "nats.conf")],
            log=self._log,
            # Near the limit Go collects all the time: 128 MiB made a backlog of 600,000 events cost four times as much.
            env={**base_environment(), "GOMEMLIMIT": "1GiB"},
        )

    async def ready(self) -> bool:
        """It greets with its facts once it listens."""
        facts = await nats_facts(self.address)
        return bool(facts and facts.get("jetstream"))


def _nobody(process: Process) -> None:
    """For callers that need the process only once it serves."""


async def start(
    server: Server,
    on_spawn: Callable[[Process], None] = _nobody,
    timeout_seconds: float = START_TIMEOUT_SECONDS,
) -> Process:
    """Prepares and starts a server and waits until it serves; raises StackError, leaving nothing running."""
    await server.prepare()
    port = int(server.address.rpartition(":")[2])
    process = spawn(server.program())
    on_spawn(process)
    try:
        await until_ready(server, process, timeout_seconds)
    except BaseException:
        process.kill()
        if not is_free(port):
            raise PortTakenError(f"port {port} for {server.name} was taken by another program") from None
        raise
    return process


async def until_ready(server: Server, process: Process, timeout_seconds: float) -> None:
    """Waits until it serves; raises StackError when it ends or takes too long."""
    deadline = time.monotonic() + timeout_seconds
    while not await server.ready():
        if process.returncode is not None:
            raise StackError(f"{server.name} ended while starting, {process.why_it_ended()}; see {process.program.log}")
        if time.monotonic() > deadline:
            raise StackError(f"{server.name} did not answer within {timeout_seconds:.0f} s; see {process.program.log}")
        await asyncio.sleep(_PROBE_EVERY_SECONDS)
    if process.returncode is not None:
        raise StackError(f"{server.name} ended while starting, {process.why_it_ended()}; see {process.program.log}")


@contextlib.asynccontextmanager
async def running(server: Server) -> AsyncIterator[Process]:
    """A server for the length of a block."""
    process = await start(server)
    try:
        yield process
    finally:
        await process.stop(_STOP_SECONDS)


def _runs_postgres(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name == "postgres"
    except OSError:
        return False
