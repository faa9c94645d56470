"""What a caller has left, for x-ratelimit-* headers: the tightest rule for requests, and the tightest for tokens."""

from collections.abc import Sequence
from typing import NamedTuple

from authz.limits.plans import Plan
from ledger.limits import Rule
from ledger.periods import Today


class LimitStatus(NamedTuple):
    """What a rule has left after a check."""

    rule: Rule
    remaining: int
    reset_seconds: float | None  # until all of it is there again; None: never


class RateLimitStatus(NamedTuple):
    """Of the rules that are enforced; None where there is none."""

    requests: LimitStatus | None = None
    tokens: LimitStatus | None = None


NO_LIMITS = RateLimitStatus()


def rate_limit_status(
    plan: Plan, remaining: Sequence[int], resets_ms: Sequence[int], day: Today, now: float
) -> RateLimitStatus:
    """From check.lua's reply: `remaining` of each rule, and ms until its window is empty (-1: it has none)."""
    requests, tokens = plan.headers
    return RateLimitStatus(
        _tightest(plan, requests, remaining, resets_ms, day, now) if requests else None,
        _tightest(plan, tokens, remaining, resets_ms, day, now) if tokens else None,
    )


def _tightest(
    plan: Plan, numbers: Sequence[int], remaining: Sequence[int], resets_ms: Sequence[int], day: Today, now: float
) -> LimitStatus:
    """Of several rules the one with the least left. (A loop: `min` with a key takes twice the time.)"""
    number = numbers[0]
    for other in numbers:
        if remaining[other] < remaining[number]:
            number = other
    rule, reset_ms = plan.rules[number], resets_ms[number]
    if reset_ms >= 0:
        return LimitStatus(rule, remaining[number], reset_ms / 1000)
    ends = day.ends(rule.limit.period)
    return LimitStatus(rule, remaining[number], None if ends is None else ends - now)
