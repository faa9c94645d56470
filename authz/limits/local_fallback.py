"""Local quota while Valkey is unreachable: each authz process may grant a share of each counter's last known balance.

A rule whose counter this process has not seen within the last minute cannot be evaluated here, so it refuses. What a
request takes of a share is spent, but for slots of requests at once: those come back when it has ended.
"""

import time
from collections.abc import Callable, Sequence

from authz.limits.plans import Plan
from ledger.limits import CONCURRENCY

_MAX_COUNTERS = 200_000
_FRESH_SECONDS = 60.0


class LocalFallback:
    """Keeps every counter's last balance; after `begin_outage` grants its share and no more."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._last: dict[str, tuple[int, float]] = {}  # counter -> its balance, and when
        self._admitted: dict[str, float] = {}  # key id -> when it was last admitted
        self._left: dict[str, tuple[int, float]] = {}  # counter -> what is left of its share, and of which balance
        self._held: dict[str, list[str]] = {}  # reservation -> the counters of which it holds a slot
        self._outage_at = 0.0

    def remember(self, plan: Plan, remaining: Sequence[int]) -> None:
        """The balance of each rule of the plan after the request, from check.lua's reply."""
        now = self._clock()
        self._admitted[plan.record.id] = now
        for counter, left in zip(plan.counters, remaining, strict=True):
            self._last[counter] = (left, now)
        for kept in (self._admitted, self._last, self._left, self._held):
            if len(kept) > _MAX_COUNTERS:
                del kept[next(iter(kept))]

    def begin_outage(self) -> None:
        """A counter that was not seen since the last outage goes on with what is left of that share."""
        self._outage_at = self._clock()

    def take(self, plan: Plan, units: Sequence[int], reservation: str) -> list[int] | None:
        """What is left of each rule's share after a request of `units`; None: one is spent, or the key is not known.

        All rules of a counter draw on its one share, so many keys do not multiply it. Rules in shadow are ignored.
        """
        if plan.record.id not in self._admitted:
            return None
        taken: dict[str, tuple[int, float]] = {}
        for counter, rule in zip(plan.counters, plan.rules, strict=True):
            if rule.limit.shadow:
                continue
            last, at = self._last.get(counter, (0, float("-inf")))
            left, of = self._left.get(counter, (0, float("nan")))
            if of != at:
                if self._outage_at - at > _FRESH_SECONDS:
                    return None
                left = int(last * self._share)
            amount = units[rule.limit.kind.amount.value]
            if left < amount:
                return None
            taken[counter] = (left - amount, at)
        self._left.update(taken)
        slots = [
            counter
            for counter, rule in zip(plan.counters, plan.rules, strict=True)
            if rule.limit.kind is CONCURRENCY and counter in taken
        ]
        if slots and reservation:
            self._held[reservation] = slots
        return [taken[counter][0] if counter in taken else 0 for counter in plan.counters]

    @property
    def holds_slots(self) -> bool:
        """Whether requests that were admitted here may not have ended yet."""
        return bool(self._held)

    def free_slot(self, reservation: str) -> None:
        """The request has ended. Nothing happens where another process admitted it, or Valkey."""
        for counter in self._held.pop(reservation, ()):
            if (share := self._left.get(counter)) is not None:
                left, of = share
                self._left[counter] = (left + 1, of)
