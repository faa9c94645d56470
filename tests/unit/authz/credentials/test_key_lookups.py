"""Look-ups of cold keys: how many queries they become. A fake store at the seam."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from authz.credentials.key_lookups import KeyLookups
from authz.credentials.key_record import KeyRecord, owner_id
from authz.errors import DatabaseError
from tests.kit.until import until


def record(key_id: str) -> KeyRecord:
    return KeyRecord(key_id, "a", bytes(32), "1", frozenset(), active=True)


class Store:
    """Answers once `gate` is open."""

    def __init__(self) -> None:
        self.queries: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.down = False

    async def keys(self, key_ids: Sequence[str]) -> Mapping[str, KeyRecord | DatabaseError]:
        self.queries.append(sorted(key_ids))
        await self.gate.wait()
        if self.down:
            raise DatabaseError("no database")
        good = {each: record(each) for each in key_ids if each.startswith("good")}
        return {**good, **{each: DatabaseError("odd limits") for each in key_ids if each.startswith("odd")}}

    async def owner(self, account: str, project: str) -> KeyRecord | None:
        return record(owner_id(account, project)) if account == "known" else None


@pytest.fixture
async def store() -> Store:
    return Store()


@pytest.fixture
async def lookups(store: Store) -> AsyncIterator[KeyLookups]:
    found = KeyLookups(store, 30.0)
    running = asyncio.create_task(found.run())
    yield found
    running.cancel()
    await asyncio.wait([running])


async def test_what_is_asked_while_a_query_runs_is_the_next_query(store: Store, lookups: KeyLookups) -> None:
    store.gate.clear()
    first = asyncio.create_task(lookups.key("good-1"))
    await until(lambda: store.queries)
    wanted = ["good-2", "bad", "odd", "good-2", *(f"bad-{number}" for number in range(200))]
    others = [asyncio.create_task(lookups.key(each)) for each in wanted]
    await asyncio.sleep(0)  # they have asked
    store.gate.set()
    found = await asyncio.gather(*others, return_exceptions=True)
    assert await first == record("good-1")
    assert found[:2] == [record("good-2"), None]
    assert isinstance(found[2], DatabaseError)
    assert found[3:] == [record("good-2"), *[None] * 200]
    assert store.queries == [["good-1"], sorted(set(wanted))]


async def test_a_failure_fails_those_who_asked_and_nobody_later(store: Store, lookups: KeyLookups) -> None:
    store.down = True
    with pytest.raises(DatabaseError):
        await lookups.key("good")
    store.down = False
    assert await lookups.key("good") == record("good")


async def test_who_waits_too_long_or_leaves_takes_nobody_along(store: Store) -> None:
    impatient = KeyLookups(store, 0.05)
    with pytest.raises(DatabaseError, match="too long"):  # nothing looks up
        await impatient.key("good")
    running = asyncio.create_task(impatient.run())
    leaving = asyncio.create_task(impatient.key("good"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await impatient.key("good") == record("good")
    running.cancel()
    await asyncio.wait([running, leaving])


async def test_the_owners_of_tokens_do_not_wait(lookups: KeyLookups) -> None:
    assert await lookups.key(owner_id("known", "p")) == record(owner_id("known", "p"))
    assert await lookups.key(owner_id("other", "")) is None
