"""A connection ends in order in whatever state it is: no exception, no task left, and not late."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from messaging.bus import Bus, connect_bus
from stack.ports import free_port
from tests.kit.until import until

StartServer = Callable[[str], Any]
Loop = Callable[[], asyncio.AbstractEventLoop]


async def connected(server: Any, bus: Bus) -> None:
    pass


async def lost_and_noticed(server: Any, bus: Bus) -> None:
    await server.kill()
    await until(lambda: not bus.connected)
    await bus.publish_core("subject", b"kept while disconnected")


async def lost_a_moment_ago(server: Any, bus: Bus) -> None:
    await server.kill()
    for number in range(1000):
        bus.send("subject", b"%d" % number, now=False)


async def lost_while_a_write_waits(server: Any, bus: Bus) -> None:
    bus._client._transport._io_writer.transport.abort()  # type: ignore[union-attr]
    bus.send("subject", b"nobody reads it", now=False)


async def lost_twice(server: Any, bus: Bus) -> None:
    await server.kill()
    await server.start()
    await until(lambda: bus.reconnects and bus.connected)
    await lost_while_a_write_waits(server, bus)


async def lost_without_data(server: Any, bus: Bus) -> None:
    bus._client._transport._io_writer.transport.abort()  # type: ignore[union-attr]


STATES = (connected, lost_and_noticed, lost_a_moment_ago, lost_while_a_write_waits, lost_twice, lost_without_data)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_closing_is_quiet_and_complete(
    start_server: StartServer,
    caplog: pytest.LogCaptureFixture,
    loop: Loop,
    state: Callable[[Any, Bus], Awaitable[None]],
) -> None:
    server = start_server("nats")
    troubles: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        before = asyncio.all_tasks()
        async with connect_bus(server.url, "test") as bus:

            async def ignore(message: Any) -> None: ...

            await bus.subscribe("other", cb=ignore)
            await state(server, bus)
            began = time.monotonic()
        assert time.monotonic() - began < 20  # at once alone; nothing waits for more than a few seconds
        assert bus.closed
        await until(lambda: asyncio.all_tasks() <= before)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert not troubles


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_what_never_connected_leaves_nothing(loop: Loop) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        with pytest.raises(TimeoutError):
            async with connect_bus(f"nats://127.0.0.1:{free_port()}", "test", connect_seconds=0.5):
                pass
        await until(lambda: asyncio.all_tasks() <= before)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
