"""Which of the addresses in a worker's offer the router calls."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.integration.router.dispatch.scripts import chat


@dataclass
class Bystander:
    """A program that listens at a Unix socket, at an abstract one and at a port, and is no worker."""

    folder: Path
    port: int = 0
    callers: list[str] = field(default_factory=list)


@pytest.fixture
async def bystander() -> AsyncIterator[Bystander]:
    with tempfile.TemporaryDirectory() as name:
        found = Bystander(Path(name))

        async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.callers.append(str(writer.get_extra_info("sockname")))
            writer.close()

        (found.folder / "below").mkdir()
        servers = [await asyncio.start_unix_server(called, found.folder / "other")]
        servers.append(await asyncio.start_unix_server(called, found.folder / "below" / "other"))
        servers.append(await asyncio.start_unix_server(called, f"\0{found.folder.name}"))
        servers.append(await asyncio.start_server(called, "127.0.0.1", 0))
        found.port = servers[-1].sockets[0].getsockname()[1]
        yield found
        for server in servers:
            server.close()


ELSEWHERE = [
    "unix:{folder}/below/other",
    "unix:{folder}/below/../below/other",
    "unix://{folder}/below/other",
    "unix-abstract:{name}",
    "dns:///127.0.0.1:{port}",
    "ipv4:127.0.0.1:{port}",
    "ipv6:[::ffff:127.0.0.1]:{port}",
    "127.0.0.1:{port}/x",
    "127.0.0.1",
    "",
]


@pytest.mark.parametrize("address", [*ELSEWHERE, "unix:{folder}/other"])
async def test_a_router_with_a_port_calls_ports_alone(start_world: Any, bystander: Bystander, address: str) -> None:
    async with start_world(worker=False) as world:
        await _refused(world, bystander, address)


@pytest.mark.parametrize("address", [*ELSEWHERE, "unix:{folder}/../{name}/other"])
async def test_a_router_with_a_socket_calls_those_beside_it(
    start_world: Any, bystander: Bystander, address: str
) -> None:
    async with start_world(worker=False, listen=f"unix:{bystander.folder}/router") as world:
        await _refused(world, bystander, address)


async def _refused(world: Any, bystander: Bystander, address: str) -> None:
    """The request fails as with a worker that is gone, and nobody was called."""
    worker = await world.start_worker()
    worker.address = address.format(folder=bystander.folder, name=bystander.folder.name, port=bystander.port)
    status, _, data, _ = await world.client.post("CreateChatCompletion", chat(world.model))
    assert (status, json.loads(data)["error"]["code"]) == (502, "worker_lost")
    assert len(worker.offered) == 3
    assert bystander.callers == []


@pytest.mark.parametrize("listen", ["unix:{folder}/worker-0", "127.0.0.1:0"])
async def test_a_worker_beside_the_router_is_called(start_world: Any, bystander: Bystander, listen: str) -> None:
    async with start_world(worker=False, listen=f"unix:{bystander.folder}/router") as world:
        await world.start_worker(listen=listen.format(folder=bystander.folder))
        status, *_ = await world.client.post("CreateChatCompletion", chat(world.model))
        assert status == 200
