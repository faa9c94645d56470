"""Counter updates outside of checks: slots freed, reservations given back, and what a Valkey without data needs.

One task sends the queue, many updates in a call. All but counts are idempotent.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from common import names
from storage.valkey import Commands, Script, ValkeyError

logger = logging.getLogger(__name__)
_PER_CALL = 200  # a call blocks Valkey for about 2 us each
_CALLS_AT_ONCE = 50
_MAX_QUEUED = 100_000
_PAUSE_SECONDS = 0.5

Change = tuple[Any, ...]  # as amend.lua takes it


class CounterWrites:
    """Sends each account's updates in order; `run` is its one task."""

    def __init__(self, valkey: Commands) -> None:
        self._script = Script(valkey, "authz.limits", "amend.lua")
        self._queued: dict[str, list[Change]] = defaultdict(list)
        self._count = 0
        self._then: list[Callable[[], None]] = []
        self._more = asyncio.Event()

    def free_slot(self, account: str, reservation: str, then: Callable[[], None] | None = None) -> None:
        """The request ended: it no longer counts among those that run at once. `then` is called after the try."""
        self._queue(account, ("free", reservation))
        if then is not None:
            self._then.append(then)

    def give_back(self, account: str, reservation: str, tokens: int = -1) -> None:
        """The request was refused, or its client left, after Valkey may have reserved for it.

        `tokens` is what its minute counts for it from now on; -1: what was reserved.
        """
        if reservation:
            self._queue(account, ("give back", reservation, tokens))

    async def run(self) -> None:
        """Sends until cancelled."""
        while True:
            await self._more.wait()
            self._more.clear()
            queued, self._queued, self._count = self._queued, defaultdict(list), 0
            then, self._then = self._then, []
            try:
                await self.send("", queued)
            except ValkeyError as problem:
                logger.warning("counters were not updated, trying again", extra={"problem": repr(problem)})
                for account, changes in queued.items():
                    for change in changes:
                        self._queue(account, change)
                _call_all(then)
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                _call_all(then)

    async def send(self, epoch: str, changes: dict[str, list[Change]]) -> None:
        """At once, by account, for that epoch ('': any); raises ValkeyError when a part of it may be missing."""
        calls = [
            self._call(epoch, account, part[start : start + _PER_CALL])
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

    async def _call(self, epoch: str, account: str, changes: Sequence[Change]) -> None:
        await self._script.run(
            3,
            names.reserved_key(account),
            names.reservations_key(account),
            names.reservation_amounts_key(account),
            epoch,
            msgspec.msgpack.encode(changes),
        )

    def _queue(self, account: str, change: Change) -> None:
        if self._count < _MAX_QUEUED:  # beyond it: settlement, or billing's sweep for orphans, gives it back
            self._queued[account].append(change)
            self._count += 1
        self._more.set()


def _call_all(callbacks: Sequence[Callable[[], None]]) -> None:
    for each in callbacks:
        each()
