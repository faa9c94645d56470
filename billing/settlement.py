"""Settling in Valkey: what was used goes up, what was reserved goes back. Idempotent, so it may be repeated at will."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from hashlib import sha1
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from billing.entry import Entry
from billing.rollups import ALL_MODELS, LIFE, Totals
from common import names

_SCRIPT = Path(__file__).with_name("settle.lua").read_text(encoding="utf-8")
_SCRIPT_SHA = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()  # how EVALSHA names it
_RESERVATIONS_PER_CALL = 500  # a call blocks Valkey for about a microsecond each
_TOTALS_PER_CALL = 500
_CALLS_PER_PIPELINE = 200
_SECONDS = 5.0


class Settlement:
    """Settles committed batches. Made by `connect_settlement`."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis

    async def settle(self, entries: Iterable[Entry], totals: Totals) -> int:
        """Raises the used totals and gives back the reservations of entries that say `last`; how many it gave back."""
        calls = list(_calls(entries, totals))
        settled = 0
        for start in range(0, len(calls), _CALLS_PER_PIPELINE):
            part = calls[start : start + _CALLS_PER_PIPELINE]
            try:
                settled += await self._run(part)
            except NoScriptError:  # Valkey is fresh; calls that already ran do nothing the second time
                await self._redis.script_load(_SCRIPT)
                settled += await self._run(part)
        return settled

    async def _run(self, calls: list[tuple[str, list[str]]]) -> int:
        pipeline = self._redis.pipeline(transaction=False)
        for account, arguments in calls:
            pipeline.evalsha(
                _SCRIPT_SHA,
                3,
                names.quota_key(account),
                names.reservations_key(account),
                names.reservation_amounts_key(account),
                *arguments,
            )
        results: list[Any] = await pipeline.execute()
        return sum(results)


def _calls(entries: Iterable[Entry], totals: Totals) -> Iterable[tuple[str, list[str]]]:
    """(account, ARGV of settle.lua); totals go first: no moment may show a reservation back and its use missing."""
    used: dict[str, list[str]] = defaultdict(list)
    for (account, scope, model, period), tokens in totals.tokens.items():
        if (model, period) == (ALL_MODELS, LIFE) and not scope.startswith("p:"):
            used[account] += (scope.removeprefix("a").removeprefix("k:"), str(tokens))
    reservations: dict[str, dict[str, None]] = defaultdict(dict)
    for entry in entries:
        if entry.last and entry.reservation:
            reservations[entry.account][entry.reservation] = None
    for account, pairs in used.items():
        ids = list(reservations[account])
        parts = [pairs[start : start + 2 * _TOTALS_PER_CALL] for start in range(0, len(pairs), 2 * _TOTALS_PER_CALL)]
        for part in parts[:-1]:
            yield account, [str(len(part) // 2), *part]
        head = [str(len(parts[-1]) // 2), *parts[-1]]
        yield account, head + ids[:_RESERVATIONS_PER_CALL]
        for start in range(_RESERVATIONS_PER_CALL, len(ids), _RESERVATIONS_PER_CALL):
            yield account, ["0", *ids[start : start + _RESERVATIONS_PER_CALL]]


@asynccontextmanager
async def connect_settlement(redis_url: str) -> AsyncIterator[Settlement]:
    """Connects on first use; every call has a deadline, and retries are the caller's."""
    redis = Redis.from_url(
        redis_url, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS, retry=Retry(NoBackoff(), 0)
    )
    try:
        yield Settlement(redis)
    finally:
        await redis.aclose()
