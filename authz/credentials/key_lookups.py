"""Look-ups of cold keys in Postgres, many in one query, so that a flood of made-up keys costs a bounded number of them.

The first look-up after a pause goes at once. Those that come while a query runs, or shortly after it, go together with
the next one: at most fifty queries a second, whoever asks and however often.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from authz.credentials.key_record import KeyRecord, owner
from authz.errors import DatabaseError
from common.lifecycle import not_cancelled

_PAUSE_SECONDS = 0.02
_PER_QUERY = 1000


class Store(Protocol):
    """The database of keys and of the accounts of tokens; raises DatabaseError."""

    async def keys(self, key_ids: Sequence[str]) -> Mapping[str, KeyRecord | DatabaseError]:
        """Those that exist; an error in place of one that cannot be read."""

    async def owner(self, account: str, project: str) -> KeyRecord | None:
        """The record for tokens; None: the database has no such account or project."""


class KeyLookups:
    """The look-ups that wait for the next query; `run` is the one task that makes them."""

    def __init__(self, store: Store, seconds: float) -> None:
        self._store = store
        self._seconds = seconds  # that a look-up takes at most, waiting included
        self._waiting: dict[str, asyncio.Future[KeyRecord | None]] = {}
        self._more = asyncio.Event()

    async def key(self, key_id: str) -> KeyRecord | None:
        """The record as it is in the database after this call began; None: there is none. Raises DatabaseError."""
        whose = owner(key_id)
        if whose is not None:  # of a token whose signature is right: nobody floods with those
            return await self._store.owner(*whose)
        found = self._waiting.get(key_id)
        if found is None:
            found = self._waiting[key_id] = asyncio.get_running_loop().create_future()
            self._more.set()
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.shield(found)
        except TimeoutError as late:
            raise DatabaseError("the look-up took too long") from late

    async def run(self) -> None:
        """Looks up until cancelled."""
        while not_cancelled():
            await self._more.wait()
            self._more.clear()
            waiting, self._waiting = self._waiting, {}
            ids = list(waiting)
            for start in range(0, len(ids), _PER_QUERY):
                await self._read({each: waiting[each] for each in ids[start : start + _PER_QUERY]})
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _read(self, wanted: Mapping[str, asyncio.Future[KeyRecord | None]]) -> None:
        try:
            records = await self._store.keys(list(wanted))
        except DatabaseError as problem:
            records = dict.fromkeys(wanted, problem)
        for key_id, found in wanted.items():
            record = records.get(key_id)
            if isinstance(record, DatabaseError):
                found.set_exception(record)
                found.exception()  # marks it as retrieved: nobody may wait any more
            else:
                found.set_result(record)
