"""Reservations of requests that may still run, and the counts of the last minute, for a Valkey that loses its own.

Reservations are kept until their request's deadline, the requests and tokens of the last minute by the second. Both are
bounded: beyond the bound the oldest are dropped, which are the likeliest to have ended.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from authz.limits.counter_writes import Change
from authz.limits.plans import Plan
from authz.metrics import AUTHZ_FORGOTTEN
from ledger.limits import Amount

_WINDOW_SECONDS = 61  # as in check.lua
_TOKENS = Amount.TOKENS.value


class Reservation(NamedTuple):
    """An admitted request that may not have ended."""

    plan: Plan
    request_id: str
    admitted_ms: int
    ends_ms: int
    units: tuple[int, ...]  # what it takes: Plan.units


class InFlight:
    """Of all accounts."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._reservations: dict[str, Reservation] = {}  # by id, oldest first
        self._counts: dict[int, dict[tuple[str, str], int]] = {}  # second -> (account, rate hash) -> amount
        self._unwritten: dict[str, list[Change]] = defaultdict(list)  # admitted without Valkey, by account

    def __len__(self) -> int:
        return len(self._reservations)

    @property
    def has_unwritten(self) -> bool:
        """Whether something was admitted that is not written to Valkey yet."""
        return bool(self._unwritten)

    def add(self, reservation_id: str, reservation: Reservation, *, written: bool) -> None:
        """`written`: Valkey has it. Without an id only the request itself is counted."""
        plan = reservation.plan
        if not plan.rules:
            return
        account = plan.record.account
        if reservation_id:
            self._reservations[reservation_id] = reservation
            if not written:
                self._unwritten[account].append(_hold(reservation_id, reservation))
            if len(self._reservations) > self._most:
                del self._reservations[next(iter(self._reservations))]
                AUTHZ_FORGOTTEN.inc()
        second = reservation.admitted_ms // 1000
        counts = self._counts.get(second)
        if counts is None:
            counts = self._counts[second] = {}
            self._expire(reservation.admitted_ms)
        for key, by_tokens in plan.rates:
            amount = reservation.units[_TOKENS] if by_tokens else 1
            place = (account, key)
            counts[place] = counts.get(place, 0) + amount
            if not written:
                self._unwritten[account].append(("count", key, second, amount))

    def changes(self, now_ms: int) -> dict[str, list[Change]]:
        """Everything that an empty Valkey needs, by account."""
        self._expire(now_ms)
        found: dict[str, list[Change]] = defaultdict(list)
        for reservation_id, reservation in self._reservations.items():
            if reservation.ends_ms > now_ms:
                found[reservation.plan.record.account].append(_hold(reservation_id, reservation))
        for second, counts in self._counts.items():
            for (account, key), amount in counts.items():
                found[account].append(("count", key, second, amount))
        return found

    def take_unwritten(self) -> dict[str, list[Change]]:
        """What was admitted without Valkey, by account; from now on it counts as written."""
        found, self._unwritten = self._unwritten, defaultdict(list)
        return found

    def put_back(self, changes: dict[str, list[Change]]) -> None:
        """After a failure to write them."""
        for account, each in changes.items():
            self._unwritten[account][:0] = each

    def owners(self, reservation_ids: Iterable[str]) -> dict[str, tuple[str, str]]:
        """The request id and the account of each that may not have ended."""
        found = ((each, self._reservations[each]) for each in reservation_ids if each in self._reservations)
        return {each: (reservation.request_id, reservation.plan.record.account) for each, reservation in found}

    def ended(self, reservation_ids: Iterable[str]) -> None:
        """The ledger has their last events: their reservations are gone."""
        for each in reservation_ids:
            self._reservations.pop(each, None)

    def _expire(self, now_ms: int) -> None:
        for second in [second for second in self._counts if second <= now_ms // 1000 - _WINDOW_SECONDS]:
            del self._counts[second]
        while self._reservations:
            oldest = next(iter(self._reservations))
            if self._reservations[oldest].ends_ms > now_ms:
                break
            del self._reservations[oldest]


def _hold(reservation_id: str, reservation: Reservation) -> Change:
    amounts = reservation.plan.amounts(reservation.admitted_ms // 1000, reservation.units)
    return "hold", reservation_id, reservation.ends_ms, amounts
