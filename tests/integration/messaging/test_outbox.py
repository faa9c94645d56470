"""Usage events reach the stream whatever NATS does; a NATS of its own that is killed, filled and started again."""

import asyncio
import inspect
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.js import api
from uplion.billing.v1.usage_event_pb2 import UsageEvent

from common import names
from messaging.bus import Bus, connect_bus
from messaging.inbox import Inbox
from messaging.outbox import Outbox
from tests.kit.tcp_proxy import TcpProxy
from tests.kit.until import until
from tests.kit.usage_events import spooled

SECONDS = 40.0
MANY = 1 << 20


@pytest.fixture(scope="module")
def server(start_module_server: Callable[[str], Any]) -> Any:
    return start_module_server("nats")


def event(number: int, model: str) -> UsageEvent:
    return UsageEvent(request_id=f"{model}-{number}", attempt=1, model=model)


async def connected(bus: Bus) -> None:
    await until(lambda: bus.connected)
    await bus.ensure_streams()


async def ids(bus: Bus, model: str, count: int) -> list[str]:
    """The ids of the model's events in the stream, once there are so many."""

    async def stored() -> bool:
        info = await bus.js.stream_info(names.STREAM_USAGE, subjects_filter=names.usage_subject(model))
        return sum((info.state.subjects or {}).values()) >= count

    await until(stored, SECONDS, ignoring=(nats.errors.Error, TimeoutError))
    subscription = await bus.js.subscribe(names.usage_subject(model), ordered_consumer=True)
    found = [UsageEvent.FromString((await subscription.next_msg(5)).data).request_id for _ in range(count)]
    await subscription.unsubscribe()
    return found


@asynccontextmanager
async def opened(
    url: str, folder: Path | None, size: int = MANY, capacity: int = 1000
) -> AsyncIterator[tuple[Bus, Outbox]]:
    async with (
        connect_bus(url, "test", connect_seconds=SECONDS) as bus,
        Inbox.open(bus) as inbox,
        Outbox.open(bus, inbox, folder, spool_bytes=size, capacity=capacity) as outbox,
    ):
        await bus.ensure_streams()
        sending = asyncio.create_task(outbox.run())
        yield bus, outbox
        sending.cancel()
        await asyncio.wait([sending])


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer for an answer than the outbox waits."""
    monkeypatch.setattr("messaging.stream_publisher._ANSWER_SECONDS", 20.0)


@pytest.mark.usefixtures("patient")
async def test_events_go_straight_to_the_stream_and_nothing_touches_the_disk(server: Any, tmp_path: Path) -> None:
    model = uuid.uuid4().hex
    safe: list[int] = []
    async with opened(server.url, tmp_path) as (bus, outbox):
        for number in range(500):
            outbox.put(event(number, model), lambda number=number: safe.append(number))  # type: ignore[misc]
        await outbox.drain(SECONDS)
        assert safe == list(range(500))
        assert await ids(bus, model, 500) == [f"{model}-{number}" for number in range(500)]
        assert await asyncio.to_thread(os.listdir, tmp_path) == []


async def test_a_broker_that_is_away_costs_nothing_but_time(server: Any, tmp_path: Path) -> None:
    model = uuid.uuid4().hex
    async with opened(server.url, tmp_path) as (bus, outbox):
        await server.kill()
        for number in range(300):
            outbox.put(event(number, model))
        await outbox.drain(SECONDS)
        assert spooled(tmp_path), "safe now means on disk"
        await server.start()
        await connected(bus)
        assert sorted(await ids(bus, model, 300)) == sorted(f"{model}-{number}" for number in range(300))
        await until(lambda: not spooled(tmp_path))
        outbox.put(event(300, model))
        await ids(bus, model, 301)
        assert not spooled(tmp_path), "it is trusted again"


async def test_a_broker_that_hangs_is_not_waited_for(server: Any, tmp_path: Path) -> None:
    model = uuid.uuid4().hex
    async with opened(server.url, tmp_path) as (bus, outbox):
        os.kill(server.process.pid, 19)  # SIGSTOP: the connection stands
        try:
            outbox.put(event(1, model))
            await outbox.drain(SECONDS)
            assert spooled(tmp_path)
            spent = []
            for number in range(2, 5):
                began = time.monotonic()
                outbox.put(event(number, model))
                await outbox.drain(SECONDS)
                spent.append(time.monotonic() - began)
            assert min(spent) < 1.0, "they know; a busy machine may hold up one of them"
        finally:
            os.kill(server.process.pid, 18)
        assert sorted(await ids(bus, model, 4)) == [f"{model}-{number}" for number in range(1, 5)]
        await until(lambda: not spooled(tmp_path))


async def test_a_process_trusts_the_stream_again_when_another_one_has_published_its_events(
    server: Any, tmp_path: Path
) -> None:
    """Else it would take no work for ever: it has nothing to publish, so no answer would come."""
    model = uuid.uuid4().hex
    async with TcpProxy(server.url.rpartition("@")[2]) as proxy:
        through = server.url.replace(server.url.rpartition("@")[2], proxy.address)
        async with opened(through, tmp_path) as (_, behind), opened(server.url, tmp_path) as (bus, other):
            proxy.stall()
            behind.put(event(1, model))
            await behind.drain(SECONDS)
            await until(lambda: behind.blocked)
            assert await ids(bus, model, 1)  # by the other one
            await until(lambda: not spooled(tmp_path))
            assert behind.blocked
            assert not other.blocked
            proxy.resume()
            await until(lambda: not behind.blocked)


async def test_what_is_not_acknowledged_at_the_end_is_sent_by_the_next_process(server: Any, tmp_path: Path) -> None:
    model = uuid.uuid4().hex
    async with opened(server.url, tmp_path) as (_, outbox):
        await server.kill()
        outbox.put(event(1, model))
    assert spooled(tmp_path)
    await server.start()
    async with opened(server.url, tmp_path) as (bus, _):
        assert await ids(bus, model, 1) == [f"{model}-1"]
        await until(lambda: not spooled(tmp_path))


async def test_what_a_killed_process_spooled_is_sent_by_a_living_one(server: Any, tmp_path: Path) -> None:
    model = uuid.uuid4().hex
    program = """
        import asyncio, os, signal, sys
        from pathlib import Path
        from uplion.billing.v1.usage_event_pb2 import UsageEvent
        from messaging.bus import connect_bus
        from messaging.outbox import Outbox
        from messaging.inbox import Inbox

        async def main():
            async with connect_bus(sys.argv[1], "test", connect_seconds=30) as bus, Inbox.open(bus) as inbox:
                async with Outbox.open(bus, inbox, Path(sys.argv[2]), spool_bytes=1 << 20, capacity=9) as outbox:
                    sending = asyncio.create_task(outbox.run())
                    print("connected", flush=True)
                    await asyncio.to_thread(sys.stdin.readline)
                    while bus.connected:
                        await asyncio.sleep(0.01)
                    outbox.put(UsageEvent(request_id="r", attempt=1, model=sys.argv[3]))
                    await outbox.drain(30)
                    os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", inspect.cleandoc(program), server.url, str(tmp_path), model),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    async with opened(server.url, tmp_path) as (bus, _):
        assert await process.stdout.readline() == b"connected\n"
        await server.kill()
        process.stdin.write(b"\n")
        assert await process.wait() == -9
        await server.start()
        await connected(bus)
        assert await ids(bus, model, 1) == ["r"]
    await process.communicate()


async def test_a_stream_that_refuses_blocks_until_it_takes_again(server: Any, tmp_path: Path) -> None:
    model = uuid.uuid4().hex
    async with opened(server.url, tmp_path) as (bus, outbox):
        await _limit(bus, 1)
        outbox.put(event(1, model))
        await until(lambda: outbox.blocked and spooled(tmp_path))
        assert outbox.turned.is_set()
        await _limit(bus, -1)
        await until(lambda: not outbox.blocked and not spooled(tmp_path))
        assert await ids(bus, model, 1) == [f"{model}-1"]


async def test_a_stream_that_says_nothing_blocks_too(server: Any, tmp_path: Path) -> None:
    """So does NATS when the disk is full under a stream: no error, no answer, and tickets in memory go on."""
    model = uuid.uuid4().hex
    async with opened(server.url, tmp_path) as (bus, outbox):
        config = (await bus.js.stream_info(names.STREAM_USAGE)).config
        config.no_ack = True
        await bus.js.update_stream(config)
        outbox.put(event(1, model))
        await until(lambda: outbox.blocked)
        assert bus.connected
        config.no_ack = False
        await bus.js.update_stream(config)
        await until(lambda: not outbox.blocked and not spooled(tmp_path))


async def _limit(bus: Bus, size: int) -> None:
    config = (await bus.js.stream_info(names.STREAM_USAGE)).config
    config.max_bytes, config.discard = size, api.DiscardPolicy.NEW
    await bus.js.update_stream(config)


async def test_a_full_spool_blocks_and_what_it_cannot_hold_waits_in_memory(server: Any, tmp_path: Path) -> None:
    model = uuid.uuid4().hex
    async with opened(server.url, tmp_path, size=1000, capacity=50) as (bus, outbox):
        await server.kill()
        for number in range(20):
            outbox.put(event(number, model))
            await outbox.drain(0.05)
        await until(lambda: outbox.blocked)
        await server.start()
        await connected(bus)
        assert sorted(await ids(bus, model, 20)) == sorted(f"{model}-{number}" for number in range(20))
        await until(lambda: not outbox.blocked and not spooled(tmp_path))


async def test_without_a_folder_events_wait_in_memory(server: Any) -> None:
    model = uuid.uuid4().hex
    async with opened(server.url, None, capacity=3) as (bus, outbox):
        await server.kill()
        await until(lambda: not bus.connected)
        for number in range(5):
            outbox.put(event(number, model))
        await outbox.drain(0.2)
        await server.start()
        await connected(bus)
        assert sorted(await ids(bus, model, 3)) == [f"{model}-{number}" for number in (2, 3, 4)], "the oldest are lost"


@pytest.mark.usefixtures("patient")
async def test_a_model_name_no_subject_can_hold_does_not_break_the_connection(server: Any, tmp_path: Path) -> None:
    async with opened(server.url, tmp_path) as (bus, outbox):
        reconnects = bus.reconnects
        outbox.put(UsageEvent(request_id=uuid.uuid4().hex, attempt=1, model="x" * 100_000))
        await outbox.drain(SECONDS)
        assert (bus.reconnects, spooled(tmp_path), outbox.blocked) == (reconnects, 0, False)


@pytest.mark.usefixtures("patient")
async def test_an_event_that_can_never_be_stored_does_not_hold_up_the_others(server: Any, tmp_path: Path) -> None:
    model = uuid.uuid4().hex
    async with opened(server.url, tmp_path) as (bus, outbox):
        outbox.put(UsageEvent(request_id="x" * 100_000, attempt=1, model=model))
        outbox.put(event(1, model))
        await outbox.drain(SECONDS)
        assert await ids(bus, model, 1) == [f"{model}-1"]
        assert (spooled(tmp_path), outbox.blocked) == (0, False)
