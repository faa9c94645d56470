"""Changes to counters beside checks: places that became free, reservations that nobody got, what a fresh Valkey lacks.

They are queued and sent by one task, many in a call. All but counts may be repeated without harm.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from authz.limits.scripts import Commands, Script
from common import names
from storage.valkey import ValkeyError

logger = logging.getLogger(__name__)
_PER_CALL = 200  # a call blocks Valkey for about 2 us each
_CALLS_AT_ONCE = 50
_MOST_QUEUED = 100_000
_PAUSE_SECONDS = 0.5

Change = tuple[Any, ...]  # as amend.lua takes it


class CounterWrites:
    """What is queued is sent in order, account by account; `run` is its one task."""

    def __init__(self, valkey: Commands) -> None:
        self._script = Script(valkey, "amend.lua")
        self._queued: dict[str, list[Change]] = defaultdict(list)
        self._count = 0
        self._more = asyncio.Event()

    def free(self, account: str, reservation: str) -> None:
        """The request ended: its place among so many at once is free."""
        self._queue(account, ("free", reservation))

    def give_back(self, account: str, reservation: str) -> None:
        """Nobody got it: the request was refused or left after Valkey had been asked."""
        if reservation:
            self._queue(account, ("give back", reservation, -1))

    async def run(self) -> None:
        """Sends for ever."""
        while True:
            await self._more.wait()
            self._more.clear()
            queued, self._queued, self._count = self._queued, defaultdict(list), 0
            try:
                await self.send("", queued)
            except ValkeyError as problem:
                logger.warning("counters were not amended, trying again", extra={"problem": repr(problem)})
                for account, changes in queued.items():
                    for change in changes:
                        self._queue(account, change)
                await asyncio.sleep(_PAUSE_SECONDS)

    async def send(self, since: str, changes: dict[str, list[Change]]) -> None:
        """Now, whole; raises ValkeyError when a part of it may be missing."""
        calls = [
            self._call(since, account, part[start : start + _PER_CALL])
            for account, part in changes.items()
            for start in range(0, len(part), _PER_CALL)
        ]
        for start in range(0, len(calls), _CALLS_AT_ONCE):
            found = await asyncio.gather(*calls[start : start + _CALLS_AT_ONCE], return_exceptions=True)
            for each in found:
                if isinstance(each, BaseException):
                    for call in calls[start + _CALLS_AT_ONCE :]:
                        call.close()
                    raise each

    async def _call(self, since: str, account: str, changes: Sequence[Change]) -> None:
        await self._script.run(
            3,
            names.reserved_key(account),
            names.reservations_key(account),
            names.reservation_amounts_key(account),
            since,
            msgspec.msgpack.encode(changes),
        )

    def _queue(self, account: str, change: Change) -> None:
        if self._count < _MOST_QUEUED:  # beyond it: settlement, or the sweep for orphans, gives it back
            self._queued[account].append(change)
            self._count += 1
        self._more.set()
