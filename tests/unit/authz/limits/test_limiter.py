"""Limits without Valkey: shares of what was left, for a minute, to known keys, and never more."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from authz.credentials.key_record import KeyRecord
from authz.limits.counter_writes import CounterWrites
from authz.limits.in_flight import InFlight
from authz.limits.limiter import Grant, Limiter, LimiterSettings
from authz.limits.local_fallback import LocalFallback
from authz.limits.plans import LedgerBalance, Plans
from authz.limits.prices import PriceTable
from authz.limits.recovery import StoreEpoch
from authz.request_facts import RequestFacts
from common.errors import Reason, UplionError
from common.operations import Kind
from ledger.limits import Limit, Rule
from storage.valkey import ValkeyError

REQUESTS = Rule("account", "a1", Limit("requests", "minute", 100))
TOKENS = Rule("account", "a1", Limit("tokens", "life", 1000))
AT_ONCE = Rule("account", "a1", Limit("concurrency", "", 40))


class Valkey:
    """check.lua's replies, or an outage."""

    def __init__(self) -> None:
        self.left: list[int] = []  # of each rule
        self.down = False
        self.hangs: Callable[[], None] = lambda: None  # called where a call waits for one that is down
        self.calls = 0
        self.scripts: list[str] = []  # that ran, by the number of their keys

    async def call(self, *command: str | bytes | int) -> Any:
        if self.down:
            self.hangs()
            self.calls += command[0] == "EVALSHA"
            raise ValkeyError("no answer in time")
        if command[0] == "GET":
            return b"0-0-00000000"
        if command[0] == "TIME":
            return [b"1700000000", b"0"]
        if command[0] == "EVALSHA":
            self.scripts.append("amend" if command[2] == 3 else "check")
        return [b"OK", 40, 0, 1_700_000_000_000, self.left, [-1] * len(self.left), []]

    async def pipeline(self, commands: Sequence[Any]) -> list[Any]:
        return [await self.call(*command) for command in commands]


class Ledger:
    async def used(self, account: str, wanted: Sequence[LedgerBalance]) -> list[int]:
        return [0] * len(wanted)

    async def ended(self, request_ids: Sequence[str]) -> dict[str, int]:
        return {}


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.valkey = Valkey()
        self.rules: tuple[Rule, ...] = ()
        self.records: dict[str, KeyRecord] = {}
        in_flight, counter_writes = InFlight(1000), CounterWrites(self.valkey)
        self.since = StoreEpoch(self.valkey, None, Ledger(), in_flight, counter_writes, lambda: self.now)
        self.limits = Limiter(
            self.valkey,
            Ledger(),
            Plans(PriceTable()),
            LocalFallback(0.25, lambda: self.now),
            self.since,
            in_flight,
            counter_writes,
            LimiterSettings(outage=60),
            lambda: "r",
            lambda: self.now,
        )

    def answer(self, *left: tuple[Rule, int]) -> None:
        self.rules = tuple(rule for rule, _ in left)
        self.valkey.left = [remaining for _, remaining in left]

    async def admit(self, key: str = "k1", kind: Kind = Kind.GENERATION) -> Grant:
        record = self.records.get(key)
        if record is None or record.rules != self.rules:
            record = self.records[key] = KeyRecord(
                key, "a1", bytes(32), "p1", frozenset(), active=True, rules=self.rules
            )
        return await self.limits.admit(record, RequestFacts("public", "", kind, "m", 10, 40, 1, "id"))

    async def refused(self, key: str = "k1") -> Reason:
        with pytest.raises(UplionError) as refusal:
            await self.admit(key)
        return refusal.value.reason


@pytest.fixture
async def world() -> World:
    made = World()
    await made.since.refresh()
    return made


async def test_reading_reserves_nothing_and_generation_does(world: World) -> None:
    assert (await world.admit(kind=Kind.READING)).reservation == ""
    assert (await world.admit()).reservation == "r"


async def test_a_known_key_gets_its_share_of_requests_and_then_503(world: World) -> None:
    world.answer((REQUESTS, 20))
    await world.admit()
    world.valkey.down = True
    for _ in range(5):  # a quarter of 20
        await world.admit()
    assert await world.refused() is Reason.UNAVAILABLE


async def test_a_known_key_gets_its_share_of_tokens_and_then_503(world: World) -> None:
    world.answer((TOKENS, 400))
    await world.admit()
    world.valkey.down = True
    for _ in range(2):  # a quarter of 400, at 50 a request
        await world.admit()
    assert await world.refused() is Reason.UNAVAILABLE


async def test_requests_at_once_have_their_share_too(world: World) -> None:
    world.answer((AT_ONCE, 12), (TOKENS, 1000))
    await world.admit()
    world.valkey.down = True
    for _ in range(3):
        assert (await world.admit()).holds_slot
    assert await world.refused() is Reason.UNAVAILABLE


async def test_what_was_heard_long_before_the_outage_counts_for_nothing(world: World) -> None:
    world.answer((REQUESTS, 100))
    await world.admit()
    world.now += 61
    world.valkey.down = True
    assert await world.refused() is Reason.UNAVAILABLE


async def test_a_second_outage_does_not_hand_out_the_first_ones_share_again(world: World) -> None:
    world.answer((REQUESTS, 20))
    await world.admit("k1")
    await world.admit("k2")
    granted = 0
    for _ in range(3):
        world.valkey.down = True
        for _ in range(10):
            try:
                await world.admit("k1")
                granted += 1
            except UplionError:
                pass
        world.now += 1
        world.valkey.down = False
        world.answer()
        await world.admit("k3")  # Valkey is back, and says nothing of the account's counter
        world.answer((REQUESTS, 20))
    assert granted == 5


async def test_a_rule_that_was_never_judged_refuses(world: World) -> None:
    world.answer((REQUESTS, 20))
    await world.admit()
    world.valkey.down = True
    world.rules = (REQUESTS, TOKENS)
    assert await world.refused() is Reason.UNAVAILABLE


async def test_the_keys_of_an_account_draw_on_one_share(world: World) -> None:
    world.answer((REQUESTS, 20))
    await world.admit("k1")
    await world.admit("k2")
    world.valkey.down = True
    granted = 0
    for number in range(20):
        try:
            await world.admit(f"k{1 + number % 2}")
            granted += 1
        except UplionError:
            pass
    assert granted == 5


async def test_a_stranger_gets_nothing_without_valkey(world: World) -> None:
    world.valkey.down = True
    assert await world.refused() is Reason.UNAVAILABLE


async def test_after_a_minute_of_outage_nobody_passes_and_recovery_is_automatic(world: World) -> None:
    await world.admit()
    world.valkey.down = True
    await world.admit()
    world.now += 61
    assert await world.refused() is Reason.UNAVAILABLE
    world.valkey.down = False
    world.now += 1
    await world.admit()
    assert not world.limits.degraded


async def test_a_dead_valkey_is_asked_twice_a_second_only(world: World) -> None:
    await world.admit()
    world.valkey.down = True
    calls = world.valkey.calls
    for _ in range(100):
        await world.admit()
    assert world.valkey.calls == calls + 1


async def test_one_that_hangs_is_tried_by_few(world: World) -> None:
    world.answer((REQUESTS, 4000))
    await world.admit()

    def hang() -> None:
        world.now += 2.0

    world.valkey.down, world.valkey.hangs = True, hang
    began = world.now
    for _ in range(300):
        await world.admit()
        world.now += 0.1
    assert world.valkey.calls <= 0.5 * (world.now - began) / 2.0, "less than half of the time is spent waiting"


async def test_the_first_check_of_a_valkey_that_is_back_counts_what_was_admitted_without_it(world: World) -> None:
    world.answer((REQUESTS, 20))
    await world.admit()
    world.valkey.down = True
    for _ in range(3):
        await world.admit()
    world.valkey.down = False
    world.now += 1
    world.valkey.scripts.clear()
    await world.admit()
    assert world.valkey.scripts == ["amend", "check"]
    await world.admit()
    assert world.valkey.scripts == ["amend", "check", "check"]
