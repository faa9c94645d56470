"""200 streams of one key on one worker: others are answered, and each stream runs once and to its end.

The large form, with times, is tests/chaos/test_overload.py.
"""

import asyncio
from pathlib import Path

import asyncpg

from tests.chaos.good_caller import asked
from tests.chaos.held_streams import fates, hold
from tests.kit.platform import Platform, Up
from tests.kit.until import until

_STREAMS = 200
_MANIFEST = """apiVersion: model.youxam.com/v1alpha1
kind: AIModel
metadata: {name: busy}
spec: {type: local, model: none, engine: synthetic, maxProcessNum: 300,
  synthetic: {tokensPerSecond: 100, outputTokens: 1000}}
"""


def test_many_streams_refuse_nobody_and_none_is_run_twice(start_platform: Up, tmp_path: Path) -> None:
    (tmp_path / "busy.yaml").write_text(_MANIFEST)
    platform = start_platform("-f", str(tmp_path / "busy.yaml"))
    key = platform.cli("keys", "create")
    attempts = asyncio.run(_scenario(platform, key["key"], key["id"]))
    assert attempts == [(1, "completed")] * _STREAMS


async def _scenario(platform: Platform, key: str, key_id: str) -> list[tuple[int, str]]:
    streams = await hold(platform.facts["base_url"], key, "busy", _STREAMS)
    answers = await asked(platform, 5.0)
    assert {each.status for each in answers} == {200}
    await until(lambda: all(stream.ended.is_set() for stream in streams), 240)
    assert fates(streams) == {"ok": _STREAMS}
    connection = await asyncpg.connect(platform.facts["postgres_url"], timeout=60)
    try:
        query = "SELECT attempt, status FROM usage_events WHERE key = $1"

        async def counted() -> list[tuple[int, str]]:
            rows = [(row["attempt"], row["status"]) for row in await connection.fetch(query, key_id)]
            return rows if len(rows) >= _STREAMS else []

        found: list[tuple[int, str]] = await until(counted)
        return found
    finally:
        await connection.close()
