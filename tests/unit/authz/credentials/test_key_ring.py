"""The key ring: what is trusted, for how long, and what a flood costs. A fake store at the seam, a clock in hand."""

import asyncio

import pytest

from authz.credentials.key_record import CachedRecord, KeyRecord
from authz.credentials.key_ring import KeyRing, KeyRingLimits
from authz.errors import DatabaseError
from common.errors import Reason, UplionError

LIMITS = KeyRingLimits(ttl=60, stale=600, unknown_ttl=5, known=10, unknown=20, lookups=4)


def record(key_id: str = "k1", account: str = "a1", *, active: bool = True) -> KeyRecord:
    return KeyRecord(key_id, account, bytes(32), "p1", frozenset({"inference"}), active)


class Table:
    """Postgres, as far as the ring can tell."""

    def __init__(self) -> None:
        self.rows: dict[str, KeyRecord] = {}
        self.reads = 0
        self.down = False
        self.gate: asyncio.Event | None = None

    async def key(self, key_id: str) -> KeyRecord | None:
        self.reads += 1
        found = self.rows.get(key_id)  # what the statement saw, however late its answer comes
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise DatabaseError("no database")
        return found


class Board:
    """The shared shelf."""

    def __init__(self) -> None:
        self.kept: dict[str, CachedRecord] = {}

    async def get(self, key_id: str) -> CachedRecord | None:
        return self.kept.get(key_id)

    async def put(self, cached: CachedRecord) -> None:
        self.kept[cached.record.id] = cached

    async def drop(self, kind: str, name: str) -> None:
        self.kept = {
            each: kept for each, kept in self.kept.items() if name not in {each, kept.record.account} or not kind
        }


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.table, self.board = Table(), Board()
        self.ring = KeyRing(self.table, self.board, LIMITS, lambda: self.now)


@pytest.fixture
def world() -> World:
    return World()


async def test_a_key_is_read_once_a_minute(world: World) -> None:
    world.table.rows["k1"] = record()
    for _ in range(5):
        assert await world.ring.find("k1") == record()
    assert world.table.reads == 1
    world.now += 61
    await world.ring.find("k1")
    assert world.table.reads == 2


async def test_the_age_counts_from_postgres_also_on_the_shelf(world: World) -> None:
    world.board.kept["k1"] = CachedRecord(record(), world.now - 50)
    await world.ring.find("k1")
    assert world.table.reads == 0
    world.table.rows["k1"] = record(active=False)
    world.now += 11
    found = await world.ring.find("k1")
    assert found is not None
    assert not found.active


async def test_many_askers_share_one_lookup(world: World) -> None:
    world.table.rows["k1"] = record()
    world.table.gate = asyncio.Event()
    asking = [asyncio.create_task(world.ring.find("k1")) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()  # the one who looks up leaves; the others must not suffer
    await asyncio.sleep(0)
    world.table.gate.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert found[1:] == [record()] * 49
    assert world.table.reads <= 2


async def test_a_flood_of_unknown_keys_fills_bounded_space_and_asks_once_each(world: World) -> None:
    for number in range(1000):
        assert await world.ring.find(f"x{number}") is None
    assert len(world.ring) <= LIMITS.unknown
    reads = world.table.reads
    assert await world.ring.find("x999") is None
    assert world.table.reads == reads


async def test_too_many_cold_lookups_at_once_are_turned_away(world: World) -> None:
    world.table.gate = asyncio.Event()
    asking = [asyncio.create_task(world.ring.find(f"x{number}")) for number in range(4)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(UplionError) as refusal:
        await world.ring.find("one more")
    assert refusal.value.reason is Reason.UNAVAILABLE
    world.table.gate.set()
    await asyncio.gather(*asking)


async def test_invalidation_forgets_keys_and_accounts_everywhere(world: World) -> None:
    for kind, name in (("key", "k1"), ("account", "a1")):
        world.table.rows["k1"] = record()
        await world.ring.find("k1")
        del world.table.rows["k1"]
        await world.ring.invalidate(kind, name)
        assert world.board.kept == {}
        assert await world.ring.find("k1") is None
        world.now += 6


async def test_a_revocation_during_a_lookup_is_not_missed(world: World) -> None:
    world.table.rows["k1"] = record()
    world.table.gate = asyncio.Event()
    asking = asyncio.create_task(world.ring.find("k1"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    world.table.rows["k1"] = record(active=False)
    await world.ring.invalidate("key", "k1")
    world.table.gate.set()
    found = await asking
    assert found is not None
    assert not found.active


async def test_postgres_down_leaves_known_keys_working_and_strangers_at_503(world: World) -> None:
    world.table.rows["k1"] = record()
    await world.ring.find("k1")
    world.board.kept.clear()
    world.table.down = True
    world.now += 300
    assert await world.ring.find("k1") == record()
    with pytest.raises(UplionError) as refusal:
        await world.ring.find("k2")
    assert refusal.value.reason is Reason.UNAVAILABLE
    world.now += 400
    with pytest.raises(UplionError):
        await world.ring.find("k1")


async def test_after_a_gap_everything_is_asked_again(world: World) -> None:
    world.table.rows["k1"] = record()
    await world.ring.find("k1")
    world.board.kept.clear()
    world.table.rows["k1"] = record(active=False)
    world.ring.expire_all()
    found = await world.ring.find("k1")
    assert found is not None
    assert not found.active
