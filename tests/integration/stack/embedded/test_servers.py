"""The embedded servers: real ones, killed and started again."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import nats
import pytest
import redis.asyncio

from stack.children import processes
from stack.embedded import binaries, probes, servers
from stack.errors import PortTakenError, StackError
from stack.ports import free_port
from tests.kit.until import until


async def test_postgres_keeps_committed_rows_over_a_kill(start_server: Callable[[str], Any]) -> None:
    server = await asyncio.to_thread(start_server, "postgres")
    connection = await asyncpg.connect(server.url)
    await connection.execute("CREATE TABLE kept (n int)")
    await connection.execute("INSERT INTO kept VALUES (7)")
    await server.kill()
    await server.start()
    connection = await asyncpg.connect(server.url)
    assert await connection.fetchval("SELECT n FROM kept") == 7
    assert await connection.fetchval("SHOW fsync") == "on"
    await connection.close()


async def test_valkey_keeps_keys_over_a_kill(start_server: Callable[[str], Any]) -> None:
    server = await asyncio.to_thread(start_server, "valkey")
    async with redis.asyncio.from_url(server.url) as client:
        await client.set("kept", "7")
    await server.kill()
    await server.start()
    async with redis.asyncio.from_url(server.url) as client:
        assert await client.get("kept") == b"7"


async def test_nats_keeps_acknowledged_messages_over_a_kill(start_server: Callable[[str], Any]) -> None:
    server = await asyncio.to_thread(start_server, "nats")
    client = await nats.connect(server.url)
    jetstream = client.jetstream()
    await jetstream.add_stream(name="KEPT", subjects=["kept"])
    for _ in range(50):
        await jetstream.publish("kept", b"x")
    await client.close()
    await server.kill()
    await server.start()
    client = await nats.connect(server.url)
    assert (await client.jetstream().stream_info("KEPT")).state.messages == 50
    await client.close()


async def test_strangers_are_refused_by_postgres(start_server: Callable[[str], Any]) -> None:
    server = await asyncio.to_thread(start_server, "postgres")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(f"postgres://uplion:wrong@{server.server.address}/postgres")


@pytest.mark.parametrize(
    ("kind", "request_bytes", "refusal"),
    [
        ("valkey", b"PING\r\n", b"-NOAUTH"),
        ("valkey", b"AUTH wrong\r\n", b"-WRONGPASS"),
        ("nats", b'CONNECT {"verbose":false}\r\nPING\r\n', b"-ERR 'Authorization Violation'"),
    ],
)
async def test_strangers_are_refused(
    kind: str, request_bytes: bytes, refusal: bytes, start_server: Callable[[str], Any]
) -> None:
    server = await asyncio.to_thread(start_server, kind)
    host, _, port = server.server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request_bytes)
    await asyncio.wait_for(reader.readuntil(refusal), 60)
    writer.close()
    await writer.wait_closed()


async def test_password_files_are_private(tmp_path: Path) -> None:
    for kind in (servers.Nats, servers.Valkey):
        await kind(tmp_path / kind.name, tmp_path / "log", free_port(), "secret").prepare()
        (written,) = (tmp_path / kind.name).glob("*.conf")
        assert written.stat().st_mode & 0o077 == 0
        assert (tmp_path / kind.name).stat().st_mode & 0o077 == 0


async def test_a_half_made_database_folder_is_made_anew(tmp_path: Path) -> None:
    server = servers.Postgres(tmp_path / "pg", tmp_path / "log", free_port(), "secret")
    (tmp_path / "pg/data/base").mkdir(parents=True)
    (tmp_path / "pg/data/PG_VERSION").write_text("18")
    (tmp_path / "pg/half-made").touch()
    async with servers.running(server):
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()


async def test_a_taken_port_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=str(port)):
            await servers.start(servers.Valkey(tmp_path, tmp_path / "log", port, "secret"), timeout_seconds=2)


@pytest.mark.parametrize("missing", ["postgres", "valkey", "nats", "envoy"])
def test_a_missing_binary_is_one_sentence(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_wheel_folder", lambda package: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(StackError, match="make setup"):
        getattr(binaries, missing)()


def test_an_old_nats_on_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nats-server").write_text("#!/bin/sh\necho 'nats-server: v2.9.10'\n")
    (tmp_path / "nats-server").chmod(0o755)
    monkeypatch.setattr(binaries, "_wheel_folder", lambda package: None)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(StackError, match=r"2\.9\.10.*too old; 2\.12"):
        binaries.nats()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs the namespace")
def test_forbidden_user_namespaces_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LIBC", SimpleNamespace(unshare=lambda flags: -1))
    server = servers.Postgres(tmp_path, tmp_path / "log", free_port(), "secret")
    with pytest.raises(StackError, match=r"forbids the user namespace.*or give --postgres-url"):
        processes.spawn(server.program())


async def test_an_external_server_that_does_not_answer_is_refused() -> None:
    port = free_port()
    for name, scheme in (("nats", "nats"), ("redis", "redis"), ("postgres", "postgres")):
        with pytest.raises(StackError, match=f"{port}.*--{name}-url"):
            await probes.check_external(name, f"{scheme}://127.0.0.1:{port}")


async def test_an_external_nats_that_answers_is_accepted(nats_url: str) -> None:
    await probes.check_external("nats", nats_url)


@pytest.mark.parametrize("kind", ["nats", "valkey", "postgres"])
async def test_a_server_ends_with_a_killed_parent(kind: str, tmp_path: Path) -> None:
    """The parent dies by SIGKILL, and every process of the server is gone within seconds."""
    code = (
        "import asyncio, json, sys\nfrom pathlib import Path\nfrom stack.embedded import servers\n"
        "from stack.ports import free_port\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"kind = dict(nats=servers.Nats, valkey=servers.Valkey, postgres=servers.Postgres)[{kind!r}]\n"
        "process = asyncio.run(servers.start(kind(folder / 'server', folder / 'log', free_port(), 'secret')))\n"
        "print(process.pid, flush=True)\nsys.stdin.read()\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 60))
    family = [pid, *_children(pid)]
    parent.kill()
    await parent.wait()
    await until(lambda: not any(_alive(member) for member in family))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
