"""The audit of counters: used totals and reservations in Valkey against the ledger's balances and spending."""

import asyncio
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from billing.reconciliation.difference import Difference
from billing.rollups import MILLIONTHS
from common import names
from ledger.limits import BALANCES, COST_BUDGET
from storage.valkey import Valkey, connect_valkey

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

_SECONDS = 5.0
_SETTLED_SECONDS = 15.0  # a counter is raised right after the commit; later than this it is a difference
_POLL_SECONDS = 0.25
_OVERDUE_SECONDS = 300.0  # after its request's deadline a reservation should be gone
_USED_KEY = re.compile(r"\{(?P<account>.*)\}:used:(?P<period>[^:]+)")
_RESERVED_KEY = re.compile(r"\{(?P<account>.*)\}:reserved")
_COLUMNS = tuple((kind.balance, kind) for kind in BALANCES.values() if not kind.is_money)
_BALANCES = f"""
    SELECT account, scope, model, period, {", ".join(column for column, _ in _COLUMNS)} FROM balances
    WHERE account = ANY($1::text[]) AND period = ANY($2::text[])
"""
_SPENDING = f"""
    SELECT account, scope, model, period, currency, {MILLIONTHS} AS millionths FROM spending
    WHERE account = ANY($1::text[]) AND period = ANY($2::text[])
"""


class UsedCounter(NamedTuple):
    """A field of a used hash."""

    account: str
    period: str
    field: str

    @property
    def key(self) -> str:
        return names.used_key(self.account, self.period)


class CounterReader:
    """Reads Valkey. Made by `connect_counters`."""

    def __init__(self, valkey: Valkey) -> None:
        self._valkey = valkey

    async def used(self) -> dict[UsedCounter, int]:
        """Every used total, except those that authz is loading from the ledger at this moment."""
        found: dict[UsedCounter, int] = {}
        async for key in self._valkey.scan("*:used:*"):
            if match := _USED_KEY.fullmatch(key.decode()):
                for field, value in _hash(await self._valkey.call("HGETALL", key)).items():
                    name = field.decode()
                    if name.partition("|")[0] in BALANCES and int(value) >= 0:
                        found[UsedCounter(match["account"], match["period"], name)] = int(value)
        return found

    async def behind(self, totals: Mapping[UsedCounter, int]) -> list[Difference]:
        """Waits for counters that a batch may just be settling; those that stay below their total."""
        deadline = time.monotonic() + _SETTLED_SECONDS
        rest = dict(totals)
        while True:
            late: list[Difference] = []
            for counter, total in list(rest.items()):
                value = await self._valkey.call("HGET", counter.key, counter.field)
                if value is None or int(value) < 0 or int(value) >= total:
                    del rest[counter]
                else:
                    late.append(_difference(counter, total, int(value)))
            if not rest or time.monotonic() > deadline:
                return late
            await asyncio.sleep(_POLL_SECONDS)

    async def reservations(self) -> list[Difference]:
        """Reservations long past their deadline, and reserved sums that differ from their reservations."""
        found: list[Difference] = []
        async for key in self._valkey.scan("*:reserved"):
            if match := _RESERVED_KEY.fullmatch(key.decode()):
                found += await self._reservations(match["account"])
        return found

    async def _reservations(self, account: str) -> list[Difference]:
        seconds, _ = await self._valkey.call("TIME")  # by this clock deadlines were set
        late_ms = (int(seconds) - _OVERDUE_SECONDS) * 1000
        replies = await self._valkey.transaction(
            [
                ("HGETALL", names.reserved_key(account)),
                ("HGETALL", names.reservation_amounts_key(account)),
                ("ZCOUNT", names.reservations_key(account), "-inf", int(late_ms)),
            ]
        )
        reserved, amounts, overdue = _hash(replies[0]), _hash(replies[1]), replies[2]
        found = []
        if overdue:
            found.append(Difference("reservations", f"{account} overdue", "0", str(overdue)))
        sums: dict[bytes, int] = defaultdict(int)
        for packed in amounts.values():
            fields: list[bytes | str | int] = msgspec.msgpack.decode(packed, strict=False)[2]
            for field, amount in zip(fields[::2], fields[1::2], strict=True):
                sums[_bytes(field)] += int(amount)
        for field in (reserved.keys() | sums.keys()) - {b"since"}:
            if int(reserved.get(field, 0)) != sums.get(field, 0):
                subject = f"{account} {field.decode()}"
                found.append(
                    Difference("reservations", subject, str(sums.get(field, 0)), str(int(reserved.get(field, 0))))
                )
        return found


async def compare_counters(counters: CounterReader, connection: "Connection") -> tuple[int, list[Difference]]:
    """The number of counters compared, and the differences.

    A counter is raised after the commit. It is read before the ledger, so a higher one is wrong; a lower one is read
    again for some seconds.
    """
    used = await counters.used()
    ledger = await _ledger(connection, {counter.account for counter in used}, {counter.period for counter in used})
    found = [
        _difference(counter, ledger.get(counter, 0), value)
        for counter, value in used.items()
        if value > ledger.get(counter, 0)
    ]
    low = {counter: ledger[counter] for counter, value in used.items() if value < ledger.get(counter, 0)}
    found += await counters.behind(low)
    return len(used), found + await counters.reservations()


async def _ledger(
    connection: "Connection", accounts: Collection[str], periods: Collection[str]
) -> dict[UsedCounter, int]:
    """What each counter of these accounts and periods should be."""
    ledger: dict[UsedCounter, int] = {}
    for row in await connection.fetch(_BALANCES, list(accounts), list(periods)):
        for column, kind in _COLUMNS:
            ledger[UsedCounter(row["account"], row["period"], kind.field(row["scope"], row["model"]))] = row[column]
    for row in await connection.fetch(_SPENDING, list(accounts), list(periods)):
        field = COST_BUDGET.field(row["scope"], row["model"], row["currency"])
        ledger[UsedCounter(row["account"], row["period"], field)] = row["millionths"]
    return ledger


def _difference(counter: UsedCounter, expected: int, found: int) -> Difference:
    return Difference("counters", f"{counter.key} {counter.field}", str(expected), str(found))


def _hash(reply: list[bytes]) -> dict[bytes, bytes]:
    """HGETALL's reply: field, value, field, value."""
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _bytes(field: bytes | str | int) -> bytes:
    return field if isinstance(field, bytes) else str(field).encode()


@asynccontextmanager
async def connect_counters(redis_url: str) -> AsyncIterator[CounterReader]:
    """Connects on first use; every call has a deadline."""
    async with connect_valkey(redis_url, call_seconds=_SECONDS) as valkey:
        yield CounterReader(valkey)
