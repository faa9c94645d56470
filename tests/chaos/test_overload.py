"""1,000 streams of one key: everybody else is served, and no stream of a worker that lives is lost. `make test-chaos`.

UPLION_CHAOS_STREAMS makes it smaller or larger.
"""

import asyncio
import os
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from bench.processes import resident_mib
from tests.chaos.good_caller import Asked, asked
from tests.chaos.held_streams import HeldStream, fates, hold
from tests.kit.platform import Platform, Up
from tests.kit.until import until

pytestmark = pytest.mark.chaos

_STREAMS = int(os.environ.get("UPLION_CHAOS_STREAMS", "1000"))
_SECONDS = 20.0


@pytest.fixture(scope="module")
def crowded(start_platform: Up) -> Platform:
    return start_platform("-f", str(Path(__file__).with_name("overload.yaml")))


def _memory(platform: Platform) -> dict[str, float]:
    parts = platform.cli("status")["parts"]
    return {part["name"]: resident_mib(part["pid"])[0] for part in parts if part["pid"]}


async def _attempts(platform: Platform, key: str) -> Counter[tuple[int, str]]:
    connection = await asyncpg.connect(platform.facts["postgres_url"], timeout=60)
    try:
        rows = await connection.fetch("SELECT attempt, status FROM usage_events WHERE key = $1", key)
    finally:
        await connection.close()
    return Counter((row["attempt"], row["status"]) for row in rows)


def _said(title: str, answers: list[Asked]) -> float:
    """Prints what the good caller saw; its p99 in seconds."""
    times = sorted(each.seconds for each in answers)
    p99 = times[int(0.99 * (len(times) - 1))]
    statuses = dict(Counter(each.status for each in answers))
    print(f"{title}: {len(times)} x GET /v1/models {statuses}, p50 {times[len(times) // 2]:.3f} s, p99 {p99:.3f} s")
    return p99


@pytest.mark.parametrize(("model", "slow"), [("silent", False), ("steady", False), ("fast", True)])
def test_a_thousand_streams_starve_nobody_and_none_is_lost(crowded: Platform, model: str, slow: bool) -> None:
    """Silent ones; such as get a token a second; and such as are read more slowly than they are made."""
    key = crowded.cli("keys", "create", "--limit", f"concurrency={_STREAMS}", "--account", _roomy(crowded, model))
    before = _memory(crowded)

    async def scenario() -> list[HeldStream]:
        streams = await hold(crowded.facts["base_url"], key["key"], model, _STREAMS, slow=slow)
        try:
            await judge(streams)
        finally:
            for stream in streams:
                stream.leave()
        return streams

    async def judge(streams: list[HeldStream]) -> None:
        await until(lambda: all(stream.head or stream.ended.is_set() for stream in streams))  # each is running
        answers = await asked(crowded, _SECONDS)
        print(f"{_STREAMS} streams of the model {model}, load average {os.getloadavg()[0]:.1f}: {dict(fates(streams))}")
        grown = {name: round(mib - before[name], 1) for name, mib in _memory(crowded).items() if name in before}
        print(f"MiB more than before: {grown}")
        assert {each.status for each in answers} == {200}
        assert _said(model, answers) < 0.25
        assert all(mib <= 2 * _STREAMS for mib in grown.values())
        await until(lambda: all(stream.ended.is_set() for stream in streams), 240)

    assert fates(asyncio.run(scenario())) == {"ok": _STREAMS}

    async def counted() -> bool:
        return sum((await _attempts(crowded, key["id"])).values()) >= _STREAMS

    asyncio.run(until(counted))
    assert asyncio.run(_attempts(crowded, key["id"])) == {(1, "completed"): _STREAMS}


def _roomy(platform: Platform, name: str) -> str:
    """An account whose limit lets one key have them all."""
    made = platform.cli("accounts", "create", f"{name}-crowd", "--limit", f"concurrency={_STREAMS}")
    return str(made["id"])


def test_by_default_a_key_and_an_account_have_only_so_many_at_once(crowded: Platform) -> None:
    account = crowded.cli("accounts", "create", "one-among-many")["id"]
    keys = [crowded.cli("keys", "create", "--account", account)["key"] for _ in range(3)]

    held: list[HeldStream] = []

    async def scenario() -> list[Counter[str]]:
        found = []
        for key in keys:
            streams = await hold(crowded.facts["base_url"], key, "silent", 300)
            await until(lambda each=streams: all(stream.head or stream.ended.is_set() for stream in each))  # type: ignore[misc]
            found.append(fates(streams))
            held.extend(streams)
        answers = await asked(crowded, 5.0)
        assert {each.status for each in answers} == {200}
        return found

    async def and_leave() -> list[Counter[str]]:
        try:
            return await scenario()
        finally:
            for stream in held:
                stream.leave()

    first, second, third = asyncio.run(and_leave())
    assert first == second == {"runs": 256, "refused": 44}
    assert third == {"refused": 300}
