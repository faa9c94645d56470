"""What one authz may hand out alone while Valkey cannot be asked: a share of what each counter was last known to have.

A rule whose counter this process has not seen within the last minute cannot be judged here, so it refuses.
"""

import time
from collections.abc import Callable, Sequence

from authz.limits.plans import Plan

_MOST_COUNTERS = 200_000
_FRESH_SECONDS = 60.0


class LocalFallback:
    """Remembers every counter's last balance; from `open` on, gives out its share and no more."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._last: dict[str, tuple[int, float]] = {}  # counter -> what it had left, and when
        self._known: dict[str, float] = {}  # key id -> when it was last admitted
        self._left: dict[str, tuple[int, float]] = {}  # counter -> what is left of its share, and of when it is one
        self._opened_at = 0.0

    def remember(self, plan: Plan, remaining: Sequence[int]) -> None:
        """What check.lua said is left of each rule of the plan, after the request."""
        now = self._clock()
        self._known[plan.record.id] = now
        for counter, left in zip(plan.counters, remaining, strict=True):
            self._last[counter] = (left, now)
        for kept in (self._known, self._last, self._left):
            if len(kept) > _MOST_COUNTERS:
                del kept[next(iter(kept))]

    def open(self) -> None:
        """An outage begins. Who was not heard of since the last one has what is left of that share, not another."""
        self._opened_at = self._clock()

    def take(self, plan: Plan, tokens: int, cost: int) -> list[int] | None:
        """What is left of each rule's share after this request; None when one is spent, or the key is a stranger.

        Everybody who counts in one counter draws on its one share, so many keys are not many shares. Rules in shadow
        are no matter here.
        """
        if plan.record.id not in self._known:
            return None
        taken: dict[str, tuple[int, float]] = {}
        for counter, rule in zip(plan.counters, plan.rules, strict=True):
            if rule.limit.shadow:
                continue
            last, at = self._last.get(counter, (0, float("-inf")))
            left, of = self._left.get(counter, (0, float("nan")))
            if of != at:
                if self._opened_at - at > _FRESH_SECONDS:
                    return None
                left = int(last * self._share)
            measure = rule.limit.measure
            amount = tokens if measure == "tokens" else cost if measure == "cost" else 1
            if left < amount:
                return None
            taken[counter] = (left - amount, at)
        self._left.update(taken)
        return [taken[counter][0] if counter in taken else 0 for counter in plan.counters]
