"""Limits without Valkey: shares of what was left, for a minute, to known keys, and never more."""

from typing import Any

import pytest

from authz.asking import Kind, Question
from authz.keys import KeyRecord
from authz.limits import Grant, LimitRules, Limits
from authz.valkey import ValkeyError
from common.errors import Reason, UplionError


class Script:
    """check.lua's replies, or an outage."""

    def __init__(self) -> None:
        self.reply: list[Any] = [b"OK", 10, -1, -1, -1, -1, -1, -1]
        self.down = False
        self.calls = 0

    async def call(self, *command: str | bytes | int) -> Any:
        self.calls += 1
        if self.down:
            raise ValkeyError("no answer in time")
        return self.reply


class Ledger:
    async def used_tokens(self, account: str, key_id: str) -> tuple[int, int]:
        return 0, 0


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.script = Script()
        rules = LimitRules(outage=60, local_share=0.25)
        self.limits = Limits(self.script, Ledger(), rules, lambda: "r", lambda: self.now)

    async def admit(self, key: str = "k1", kind: Kind = Kind.GENERATION) -> Grant:
        record = KeyRecord(key, "a1", bytes(32), "p1", frozenset(), active=True)
        return await self.limits.admit(record, Question("public", "", kind, "m", 10, 40, 1, "id"))

    async def refused(self, key: str = "k1") -> Reason:
        with pytest.raises(UplionError) as refusal:
            await self.admit(key)
        return refusal.value.reason


@pytest.fixture
def world() -> World:
    return World()


async def test_reading_reserves_nothing_and_generation_does(world: World) -> None:
    assert (await world.admit(kind=Kind.READING)).reservation == ""
    assert (await world.admit()).reservation == "r"


async def test_a_known_key_gets_its_share_of_requests_and_then_503(world: World) -> None:
    world.script.reply = [b"OK", 10, -1, 100, 20, 1000, -1, -1]
    await world.admit()
    world.script.down = True
    for _ in range(5):  # a quarter of 20
        await world.admit()
    assert await world.refused() is Reason.UNAVAILABLE


async def test_a_known_key_gets_its_share_of_tokens_and_then_503(world: World) -> None:
    world.script.reply = [b"OK", 10, 1000, -1, -1, -1, 1000, 400]
    await world.admit()
    world.script.down = True
    for _ in range(2):  # a quarter of 400, at 50 a request
        await world.admit()
    assert await world.refused() is Reason.UNAVAILABLE


async def test_the_keys_of_an_account_draw_on_one_share(world: World) -> None:
    world.script.reply = [b"OK", 10, -1, 100, 20, 1000, -1, -1]
    await world.admit("k1")
    await world.admit("k2")
    world.script.down = True
    granted = 0
    for number in range(20):
        try:
            await world.admit(f"k{1 + number % 2}")
            granted += 1
        except UplionError:
            pass
    assert granted == 5


async def test_a_stranger_gets_nothing_without_valkey(world: World) -> None:
    world.script.down = True
    assert await world.refused() is Reason.UNAVAILABLE


async def test_after_a_minute_of_outage_nobody_passes_and_recovery_is_automatic(world: World) -> None:
    await world.admit()
    world.script.down = True
    await world.admit()
    world.now += 61
    assert await world.refused() is Reason.UNAVAILABLE
    world.script.down = False
    world.now += 1
    await world.admit()
    assert not world.limits.degraded


async def test_a_dead_valkey_is_asked_twice_a_second_only(world: World) -> None:
    await world.admit()
    world.script.down = True
    calls = world.script.calls
    for _ in range(100):
        await world.admit()
    assert world.script.calls == calls + 1
