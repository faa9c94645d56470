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
    reset_seconds: float | None  # until some of it comes back; None: never


class RateLimitStatus(NamedTuple):
    """Of the rules that are enforced; None where there is none."""

    requests: LimitStatus | None = None
    tokens: LimitStatus | None = None


NO_LIMITS = RateLimitStatus()


def rate_limit_status(
    plan: Plan, remaining: Sequence[int], resets_ms: Sequence[int], day: Today, now: float
) -> RateLimitStatus:
    """From check.lua's reply: `remaining` of each rule, and ms until its window moves (-1: it has none)."""

    def tightest(numbers: Sequence[int]) -> LimitStatus | None:
        if not numbers:
            return None
        number = min(numbers, key=remaining.__getitem__)
        rule = plan.rules[number]
        if resets_ms[number] >= 0:
            return LimitStatus(rule, remaining[number], resets_ms[number] / 1000)
        ends = day.ends(rule.limit.period)
        return LimitStatus(rule, remaining[number], None if ends is None else ends - now)

    requests, tokens = plan.headers
    return RateLimitStatus(tightest(requests), tightest(tokens))
