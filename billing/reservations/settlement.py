"""Settlement in Valkey: raises the used totals and releases reservations. Idempotent, so it may be retried at will.

No usage is missed when authz loads a counter from Postgres while billing settles. authz first marks the field (-1),
then reads Postgres, then raises the field to the value it read, if the field still exists. Billing first commits, then
raises the field to the committed total, if the field exists. If billing finds the field, its total is stored and stays,
because fields only rise. If it does not, the field was marked later, so Postgres was read later too, and the value read
includes the commit. The same order makes it safe that authz restores a reservation into a Valkey that lost it: it
writes first and then asks the ledger whether the request has ended, so either settlement finds the reservation or authz
the event.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain

import msgspec

from billing.entry import Entry
from billing.rollups import Totals
from common import names
from ledger.usage_columns import total
from storage.valkey import Command, Script, Valkey, connect_valkey

_RESERVATIONS_PER_CALL = 500  # a call blocks Valkey for about a microsecond each
_TOTALS_PER_CALL = 500
_CALLS_PER_PIPELINE = 200
_SECONDS = 5.0
UNKNOWN_TOKENS = -1

# Account, used hashes with their [field, total, ...], and [reservation, tokens, ...]: what a call of settle.lua does.
_Call = tuple[str, dict[str, list[str]], list[str | int]]


class Settlement:
    """Settles committed batches. Made by `connect_settlement`."""

    def __init__(self, valkey: Valkey) -> None:
        self._valkey = valkey
        self._script = Script(valkey, "billing.reservations", "settle.lua")

    async def settle(self, entries: Iterable[Entry], totals: Totals) -> int:
        """Raises the used totals and releases the reservations of the entries with `last`; how many it released."""
        return await self._run(list(_calls(entries, totals)))

    async def release(self, account: str, reservations: Sequence[str]) -> int:
        """Releases reservations that no event will settle; how many still existed."""
        return await self._run(list(_releases(account, [(each, UNKNOWN_TOKENS) for each in reservations])))

    async def now_ms(self) -> int:
        """Valkey's clock, by which the deadlines of reservations are kept."""
        seconds, microseconds = await self._valkey.call("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def overdue(self, ended_ms: int) -> AsyncIterator[tuple[str, list[str]]]:
        """Accounts, each with reservations whose deadline was before `ended_ms`; the caller must release them."""
        end = names.reservations_key("")[1:]
        async for key in self._valkey.scan(names.reservations_key("*"), "zset"):
            account = key.decode().removeprefix("{").removesuffix(end)
            while True:
                ids: list[bytes] = await self._valkey.call(
                    "ZRANGEBYSCORE", key, "-inf", ended_ms, "LIMIT", 0, _RESERVATIONS_PER_CALL
                )
                if not ids:
                    break
                yield account, [each.decode() for each in ids]

    async def _run(self, calls: list[_Call]) -> int:
        settled = 0
        for start in range(0, len(calls), _CALLS_PER_PIPELINE):
            settled += sum(
                await self._script.run_all([_arguments(*call) for call in calls[start : start + _CALLS_PER_PIPELINE]])
            )
        return settled


def _arguments(account: str, used: dict[str, list[str]], reservations: list[str | int]) -> Command:
    """The arguments of settle.lua, from the number of keys on."""
    return (
        3 + len(used),
        names.reserved_key(account),
        names.reservations_key(account),
        names.reservation_amounts_key(account),
        *used,
        msgspec.msgpack.encode(list(used.values())),
        msgspec.msgpack.encode(reservations),
    )


def _calls(entries: Iterable[Entry], totals: Totals) -> Iterator[_Call]:
    """Totals go first: at no moment may a reservation be released whose usage is not counted."""
    used: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for balance, field, amount in totals.used():
        used[balance.account][names.used_key(balance.account, balance.period)] += (field, str(amount))
    reservations: dict[str, dict[str, int]] = defaultdict(dict)
    for entry in entries:
        if entry.last and entry.reservation:
            reservations[entry.account][entry.reservation] = total(entry.tokens)
    for account in used.keys() | reservations.keys():
        for hashes in _divided(used[account]):
            yield account, hashes, []
        yield from _releases(account, list(reservations[account].items()))


def _divided(used: dict[str, list[str]]) -> Iterator[dict[str, list[str]]]:
    """An account's totals, divided so that no call blocks Valkey for long."""
    call: dict[str, list[str]] = {}
    count = 0
    for key, pairs in used.items():
        for start in range(0, len(pairs), 2 * _TOTALS_PER_CALL):
            piece = pairs[start : start + 2 * _TOTALS_PER_CALL]
            if count and count + len(piece) > 2 * _TOTALS_PER_CALL:
                yield call
                call, count = {}, 0
            call[key] = piece
            count += len(piece)
    if call:
        yield call


def _releases(account: str, reservations: Sequence[tuple[str, int]]) -> Iterator[_Call]:
    for start in range(0, len(reservations), _RESERVATIONS_PER_CALL):
        part = reservations[start : start + _RESERVATIONS_PER_CALL]
        yield account, {}, list(chain.from_iterable(part))


@asynccontextmanager
async def connect_settlement(redis_url: str) -> AsyncIterator[Settlement]:
    """Connects on first use; every call has a deadline, and retries are the caller's."""
    async with connect_valkey(redis_url, call_seconds=_SECONDS) as valkey:
        yield Settlement(valkey)
