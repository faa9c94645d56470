"""Everything is killed with -9 while a crowd asks: nothing is lost, nothing counts twice. `make test-chaos`.

UPLION_TEST_SEED=n repeats an order, UPLION_CHAOS_SECONDS makes it shorter or longer.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from tests.chaos.books import differences, until_quiet, until_released
from tests.chaos.crowd import Crowd
from tests.kit.platform import UPLION, Platform, Up
from tests.kit.until import until

pytestmark = pytest.mark.chaos

_MODEL = str(Path(__file__).with_name("synthetic.yaml"))
_SECONDS = float(os.environ.get("UPLION_CHAOS_SECONDS", "60"))
_CLIENTS = 64
_KILLS = 12  # in three times _SECONDS
_BILLING = "billing-control"


@pytest.fixture
def fortress(start_platform: Up, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A platform with two routers and two authz, and two workers of its model.

    Requests end within a minute, so that it is soon known which reservations will never be told of.
    """
    monkeypatch.setenv("UPLION_AUTHZ_DEADLINE_SECONDS", "60")
    monkeypatch.setenv("UPLION_BILLING_ORPHAN_SECONDS", "2")
    monkeypatch.setenv("UPLION_BILLING_ORPHAN_GRACE_SECONDS", "20")
    return start_platform("-f", _MODEL, "--processes", "2")


def _parts(platform: Platform) -> list[str]:
    """The names of all parts that have a process."""
    parts = json.loads((platform.state / "run.json").read_text())["parts"]
    return [part["name"] for part in parts if part["pid"] is not None]


def _pid(platform: Platform, name: str) -> int | None:
    """The process of a part now; None while it is not there."""
    with suppress(OSError, ValueError):
        parts = json.loads((platform.state / "run.json").read_text())["parts"]
        return next((part["pid"] for part in parts if part["name"] == name), None)
    return None


async def _signal(platform: Platform, name: str, number: signal.Signals = signal.SIGKILL) -> None:
    def sent() -> bool:
        pid = _pid(platform, name)
        if pid is not None:
            os.kill(pid, number)
        return pid is not None

    await until(sent, ignoring=(ProcessLookupError,))


async def _shoot(platform: Platform, seed: int, seconds: float) -> None:
    """Twelve parts that the stack reports, in an order of the seed, each once before any twice; then what no order is
    sure to meet: a billing that has committed a batch and dies before it could settle and acknowledge it.
    """
    chance = random.Random(seed)
    parts = sorted(_parts(platform))
    victims = [victim for _ in range(_KILLS) for victim in chance.sample(parts, len(parts))][:_KILLS]
    for victim in victims:
        await asyncio.sleep(chance.uniform(0.5, 1.5) * seconds / len(victims))
        print(f"kill -9 {victim}", flush=True)
        await _signal(platform, victim)
    await _serving(platform)
    await _signal(platform, "valkey", signal.SIGSTOP)
    await asyncio.sleep(3)
    await _signal(platform, _BILLING)
    await _signal(platform, "valkey", signal.SIGCONT)
    await asyncio.sleep(5)


async def _serving(platform: Platform) -> None:
    """Waits until every part is ready."""

    def ready() -> bool:
        parts = json.loads((platform.state / "run.json").read_text())["parts"]
        return all(part["status"] == "ready" for part in parts)

    await until(ready, 90, ignoring=(OSError, ValueError))


@asynccontextmanager
async def _crowd(platform: Platform, key: str, seed: int, clients: int = _CLIENTS) -> AsyncIterator[Crowd]:
    """Asks for the length of the block, and says how it went."""
    crowd, stop = Crowd(platform.facts["base_url"], key, seed), asyncio.Event()
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(crowd.run(clients, stop), name="crowd")
        try:
            yield crowd
        finally:
            stop.set()
    seconds = time.monotonic() - began
    print(Counter(f"{told.fate} {told.status} {told.error[:110]}" for told in crowd.told).most_common(20))
    print(f"{len(crowd.told)} requests in {seconds:.0f} s, {len(crowd.told) / seconds:.0f}/s: {dict(crowd.counts())}")


def _key(platform: Platform) -> tuple[str, str, str]:
    """A key of its own, limited so that everything is reserved and counted: the key, its id, and its account.

    While NATS is away nobody frees a slot, not even a refused request's: so many at once that this does not show.
    """
    created = platform.cli("keys", "create", "--limit", f"tokens/life={10**12}", "--limit", "concurrency=1000000")
    return created["key"], created["id"], created["account"]


async def _under_fire(platform: Platform, seed: int, seconds: float) -> list[str]:
    key, key_id, account = await asyncio.to_thread(_key, platform)
    async with _crowd(platform, key, seed) as crowd:
        await asyncio.sleep(2)
        await _shoot(platform, seed, seconds)
    assert crowd.counts()["ok"] > 100
    await _serving(platform)
    await until_quiet(platform)
    await until_released(platform, account)
    found = await differences(platform, crowd.told, account, key_id)
    return found + await _reconciled(platform)


async def _reconciled(platform: Platform) -> list[str]:
    """What `uplion reconcile` finds."""
    command = (UPLION, "reconcile", "--json", "--state", str(platform.state))
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=600)
    print(done.stdout, done.stderr)
    report = json.loads(done.stdout)
    assert (done.returncode == 0) == report["clean"]
    return [f"reconcile: {difference}" for difference in report["differences"]]


def test_everything_is_killed_and_every_token_counts_once(fortress: Platform, seed: int) -> None:
    assert asyncio.run(_under_fire(fortress, seed, 3 * _SECONDS)) == []


def test_without_the_unique_key_the_same_test_fails(fortress: Platform, seed: int) -> None:
    """The negative control: it shows that the check can fail, and that the key is what makes it pass."""

    async def control() -> list[str]:
        connection = await asyncpg.connect(fortress.facts["postgres_url"], timeout=30)
        await connection.execute("ALTER TABLE usage_events DROP CONSTRAINT usage_events_pkey")
        await connection.close()
        return await _under_fire(fortress, seed, _SECONDS)

    found = asyncio.run(control())
    print(f"{len(found)} differences, such as {found[:3]}")
    assert any(difference.startswith("double") for difference in found)


@asynccontextmanager
async def _kept_down(platform: Platform, name: str) -> AsyncIterator[None]:
    """The part is killed, and nobody starts it again for the length of the block."""
    os.kill(platform.facts["pids"]["supervisor"], signal.SIGSTOP)
    try:
        await _signal(platform, name)
        yield
    finally:
        os.kill(platform.facts["pids"]["supervisor"], signal.SIGCONT)


def test_postgres_down_for_a_minute_fails_no_request(fortress: Platform, seed: int) -> None:
    async def scenario() -> None:
        key, key_id, account = await asyncio.to_thread(_key, fortress)
        async with _crowd(fortress, key, seed, 32) as crowd:
            await asyncio.sleep(3)
            async with _kept_down(fortress, "postgres"):
                await asyncio.sleep(_SECONDS)
            back = time.monotonic()
        assert crowd.counts().keys() == {"ok"}, [told for told in crowd.told if told.fate != "ok"][:3]
        await until_quiet(fortress)
        lag = time.monotonic() - back - 15.0  # until_quiet wants 15 s of quiet
        print(f"lag gone {lag:.1f} s after Postgres was let back")
        assert lag < 60
        await until_released(fortress, account)
        assert await differences(fortress, crowd.told, account, key_id) == []
        assert await _reconciled(fortress) == []

    asyncio.run(scenario())


def test_nats_down_for_half_a_minute_is_quick_503s_and_no_token_is_lost(fortress: Platform, seed: int) -> None:
    async def scenario() -> None:
        key, key_id, account = await asyncio.to_thread(_key, fortress)
        async with _crowd(fortress, key, seed, 32) as crowd:
            await asyncio.sleep(3)
            async with _kept_down(fortress, "nats"):
                down = time.monotonic()
                await asyncio.sleep(_SECONDS / 2)
                up = time.monotonic()
            await _serving(fortress)
            await asyncio.sleep(5)
        during = [told for told in crowd.told if down + 0.5 < told.sent_at < up - 1]
        assert {told.status for told in during} == {503}
        slowest = max(told.ended_at - told.sent_at for told in during)
        print(f"{len(during)} refused while NATS was down, the slowest after {slowest:.2f} s")
        assert sorted(told.ended_at - told.sent_at for told in during)[int(0.95 * len(during))] < 1.0
        begun = [
            told for told in crowd.told if told.stream and told.status == 200 and told.sent_at < down < told.ended_at
        ]
        print(f"{len(begun)} streams were in flight")
        assert begun
        assert {told.fate for told in begun} == {"ok"}
        assert crowd.told[-1].fate == "ok"
        await until_quiet(fortress)
        await until_released(fortress, account)
        assert await differences(fortress, crowd.told, account, key_id) == []
        assert await _reconciled(fortress) == []

    asyncio.run(scenario())
