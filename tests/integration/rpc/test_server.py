"""The gRPC server of every service, on a Unix socket."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rpc.server import grpc_server

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def path() -> Iterator[Path]:
    """Short enough for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "rpc"


async def health(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return int((await stub.Check(health_pb2.HealthCheckRequest(), timeout=60)).status)


@pytest.mark.parametrize(("mask", "mode"), [(0o000, 0o770), (0o022, 0o750), (0o077, 0o700)])
async def test_a_socket_is_never_open_to_all(path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        async with grpc_server(f"unix:{path}", lambda server: None) as bound:
            assert bound == f"unix:{path}"
            assert os.stat(path).st_mode & 0o777 == mode
            assert await health(bound) == SERVING
            assert os.umask(mask) == mask
        assert "rpc" not in os.listdir(path.parent)
    finally:
        os.umask(before)


def _killed_server(address: str) -> None:
    """Serves there in a process that is killed."""
    code = (
        "import asyncio, sys; from rpc.server import grpc_server\n"
        "async def main():\n"
        "    async with grpc_server(sys.argv[1], lambda server: None) as bound:\n"
        "        print(bound, flush=True); await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)


async def test_a_killed_servers_socket_is_replaced(path: Path) -> None:
    await asyncio.to_thread(_killed_server, f"unix:{path}")
    assert "rpc" in os.listdir(path.parent)
    async with grpc_server(f"unix:{path}", lambda server: None) as bound:
        assert await health(bound) == SERVING
