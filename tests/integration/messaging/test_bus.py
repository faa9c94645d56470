import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import nats.errors
import pytest
from nats.js.kv import KeyValue

from common import names
from messaging.bus import Bus, Change, NoRoomError, connect_bus
from messaging.pull import Pull
from tests.kit.until import until

StartServer = Callable[[str], Any]


async def _tickets(bus: Bus, model: str, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        await bus.publish(names.task_subject(model), str(number).encode(), message_id=f"{model}.{number}")


async def _take(pull: Pull, count: int, seconds: float = 60.0) -> list[str]:
    taken = []
    async with asyncio.timeout(seconds):
        async for message in pull:
            taken.append(message.data.decode())
            await message.ack_sync(60.0)
            if len(taken) == count:
                break
    return taken


async def test_a_standing_credit_brings_every_message_once_and_no_more_than_wanted(nats_url: str) -> None:
    model = f"m{uuid.uuid4().hex}"
    async with connect_bus(nats_url, "test") as bus:
        await bus.ensure_streams()
        consumer = await bus.ensure_task_consumer(model)
        await _tickets(bus, model, 100)
        async with Pull(bus, names.STREAM_TASKS, consumer) as pull:
            await pull.want(8)
            await until(lambda: len(pull._waiting) == 8)
            info = await bus.js.consumer_info(names.STREAM_TASKS, consumer)  # after any request of the pull
            assert info.delivered.consumer_seq == 8, "nothing was taken, so nothing more was asked for"
            assert len(pull._waiting) == 8
            assert await _take(pull, 100) == [str(number) for number in range(100)]
            assert await pull.next(0.2) is None


async def test_streams_and_consumers_can_be_ensured_by_many_at_once(nats_url: str) -> None:
    async with connect_bus(nats_url, "test") as bus:
        await asyncio.gather(*(bus.ensure_streams() for _ in range(8)))
        await asyncio.gather(*(bus.ensure_task_consumer("org/model.v1") for _ in range(8)))


async def test_streams_that_are_there_need_no_room_for_others(start_server: StartServer) -> None:
    """NATS counts what a stream may hold, also for one that is there already, and when it is made twice at once."""
    server = await asyncio.to_thread(start_server, "nats of 300 MB")  # DECISIONS may hold 256
    async with connect_bus(server.url, "test") as bus:
        await asyncio.gather(*(bus.ensure_streams() for _ in range(8)))
        await bus.ensure_streams()


async def test_a_stream_that_nats_has_no_room_for_is_named(start_server: StartServer) -> None:
    server = await asyncio.to_thread(start_server, "nats of 200 MB")
    async with connect_bus(server.url, "test") as bus:
        with pytest.raises(
            NoRoomError, match="NATS has no room for the stream DECISIONS, which takes 256 MB: raise its"
        ):
            await bus.ensure_streams()


async def test_an_expired_credit_is_renewed(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pull, "_EXPIRES_SECONDS", 0.3)
    model = f"m{uuid.uuid4().hex}"
    async with connect_bus(nats_url, "test") as bus:
        await bus.ensure_streams()
        consumer = await bus.ensure_task_consumer(model)
        async with Pull(bus, names.STREAM_TASKS, consumer) as pull:
            await pull.want(3)
            assert pull.outstanding == 3
            await until(lambda: not pull.outstanding)
            await _tickets(bus, model, 5)
            assert len(await _take(pull, 5)) == 5


async def test_a_pull_goes_on_after_the_server_was_killed(start_server: StartServer) -> None:
    server = await asyncio.to_thread(start_server, "nats")
    async with connect_bus(server.url, "test") as bus:
        await bus.ensure_streams()
        consumer = await bus.ensure_usage_consumer()
        async with Pull(bus, names.STREAM_USAGE, consumer) as pull:
            await pull.want(10)
            await bus.publish(names.usage_subject("m"), b"before")
            assert await _take(pull, 1) == ["before"]
            await server.kill()
            await server.start()
            await until(lambda: bus.reconnects > 0)
            await bus.publish(names.usage_subject("m"), b"after")
            # The server writes a consumer's state ten times a second: what it lost of that is delivered once more.
            while (taken := await _take(pull, 1)) != ["after"]:
                assert taken == ["before"]


async def test_a_watch_tells_what_is_there_then_changes_and_deletes(nats_url: str) -> None:
    async with connect_bus(nats_url, "test") as bus:
        await bus.ensure_streams()
        models = await bus.js.key_value(names.KV_MODELS)
        key = f"k{uuid.uuid4().hex}"
        await models.put(key, b"1")
        seen: list[Change | None] = []

        async def follow() -> None:
            async for change in bus.watch(names.KV_MODELS):
                if change is None or change.key == key:
                    seen.append(change)

        task = asyncio.create_task(follow())
        await until(lambda: None in seen)
        assert [change.value for change in seen if change] == [b"1"]
        await models.put(key, b"2")
        await models.delete(key)
        await until(lambda: len(seen) == 4)
        assert [change.value for change in seen[2:] if change] == [b"2", None]
        task.cancel()


async def test_a_watch_survives_a_restart_and_tells_what_vanished(start_server: StartServer) -> None:
    server = await asyncio.to_thread(start_server, "nats")
    async with connect_bus(server.url, "test") as bus:
        await bus.ensure_streams()
        workers = await bus.js.key_value(names.KV_WORKERS)  # in memory: gone after the kill
        await workers.put("w1", b"here")
        known: dict[str, bytes] = {}

        async def follow() -> None:
            async for change in bus.watch(names.KV_WORKERS):
                if change is not None and change.value is not None:
                    known[change.key] = change.value
                elif change is not None:
                    known.pop(change.key, None)

        task = asyncio.create_task(follow())
        await until(lambda: "w1" in known)
        await server.kill()
        await server.start()
        await until(lambda: bus.reconnects > 0)
        await bus.ensure_streams()
        await until(lambda: "w1" not in known)
        workers = await bus.js.key_value(names.KV_WORKERS)
        await workers.put("w2", b"new")
        await until(lambda: known == {"w2": b"new"})
        task.cancel()


async def test_an_entry_nobody_renews_is_told_as_deleted(nats_url: str) -> None:
    async with connect_bus(nats_url, "test") as bus:
        await bus.ensure_streams()
        workers = await bus.js.key_value(names.KV_WORKERS)
        key = f"w{uuid.uuid4().hex}"
        await workers.put(key, b"here")
        changes = bus.watch(names.KV_WORKERS, ttl_seconds=1.5)
        async with asyncio.timeout(60):
            told = [change async for change in _until_deleted(changes, key)]
        assert [change.value for change in told] == [b"here", None]


async def _read_back(bus: Bus) -> str:
    """Puts an entry of a key of its own, and sees that a snapshot has it."""
    await bus.ensure_streams()
    models = await bus.js.key_value(names.KV_MODELS)
    key = f"k{uuid.uuid4().hex}"
    await models.put(key, b"1")
    assert [(entry.key, entry.value) for entry in await bus.snapshot(names.KV_MODELS, key)] == [(key, b"1")]
    return key


@pytest.fixture
def lost_ends(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No end for the first watcher: that happens when the last entry expires before it is delivered."""
    updates = KeyValue.KeyWatcher.updates
    lost: list[Any] = []

    async def lossy(watcher: Any, timeout: float | None) -> Any:
        entry = await updates(watcher, timeout)
        if entry is None and not lost:
            lost.append(watcher)
            return await updates(watcher, timeout)
        return entry

    monkeypatch.setattr(KeyValue.KeyWatcher, "updates", lossy)
    return lost


async def test_a_watch_and_a_snapshot_begin_anew_if_the_end_is_not_told(nats_url: str, lost_ends: list[Any]) -> None:
    async with connect_bus(nats_url, "test") as bus:
        await _read_back(bus)
        assert len(lost_ends) == 1
        lost_ends.clear()
        async with asyncio.timeout(60):
            async for change in bus.watch(names.KV_MODELS):
                if change is None:
                    break
        assert len(lost_ends) == 1


@pytest.fixture
def early_ends(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The end first for the first watcher: as when the server's "none is pending" overtakes the entries."""
    updates = KeyValue.KeyWatcher.updates
    told: list[Any] = []

    async def early(watcher: Any, timeout: float | None) -> Any:
        if not told:
            told.append(watcher)
            return None
        return await updates(watcher, timeout)

    monkeypatch.setattr(KeyValue.KeyWatcher, "updates", early)
    return told


async def test_a_watch_and_a_snapshot_do_not_believe_an_end_that_comes_first(
    nats_url: str, early_ends: list[Any]
) -> None:
    async with connect_bus(nats_url, "test") as bus:
        key = await _read_back(bus)
        assert await bus.snapshot(names.KV_MODELS, "nobody") == []
        early_ends.clear()
        async with asyncio.timeout(60):
            async for change in bus.watch(names.KV_MODELS):
                assert change is not None, "the end came first"
                if change.key == key:
                    break
        await (await bus.js.key_value(names.KV_MODELS)).delete(key)
        assert await bus.snapshot(names.KV_MODELS, key) == []


async def test_a_thousand_snapshots_leave_room_for_more(start_server: StartServer) -> None:
    server = await asyncio.to_thread(start_server, "nats")
    async with connect_bus(server.url, "test") as bus:
        await bus.ensure_streams()
        for _ in range(12):
            await asyncio.gather(*(bus.snapshot(names.KV_MODELS) for _ in range(100)))


async def _until_deleted(changes: Any, key: str) -> Any:
    async for change in changes:
        if change is not None and change.key == key:
            yield change
            if change.value is None:
                return


async def test_nobody_at_the_address_is_an_error_within_the_deadline() -> None:
    with pytest.raises((TimeoutError, nats.errors.Error, OSError)):
        async with connect_bus("nats://127.0.0.1:1", "test", connect_seconds=1.0):
            pass
