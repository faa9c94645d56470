"""What a key has left, as its owner is told: the tightest rule for requests, and the tightest for tokens."""

from collections.abc import Sequence
from typing import NamedTuple

from ledger.limits import Rule
from ledger.periods import Today


class LimitStatus(NamedTuple):
    """What a rule has left after a check."""

    rule: Rule
    remaining: int
    reset_seconds: float | None  # until something comes back; None: never


class RateLimitStatus(NamedTuple):
    """Of the rules that are enforced; None where there is none."""

    requests: LimitStatus | None = None
    tokens: LimitStatus | None = None


NO_LIMITS = RateLimitStatus()


def rate_limit_status(
    rules: Sequence[Rule], remaining: Sequence[int], resets_ms: Sequence[int], day: Today, now: float
) -> RateLimitStatus:
    """From check.lua's answer: `remaining` of each rule, and ms until a window moves (-1: it has none)."""
    requests = tokens = -1
    for number, rule in enumerate(rules):
        limit = rule.limit
        if limit.shadow:
            continue
        if limit.measure == "requests":
            if requests < 0 or remaining[number] < remaining[requests]:
                requests = number
        elif limit.measure == "tokens" and (tokens < 0 or remaining[number] < remaining[tokens]):
            tokens = number

    def left(number: int) -> LimitStatus | None:
        if number < 0:
            return None
        rule = rules[number]
        if resets_ms[number] >= 0:
            return LimitStatus(rule, remaining[number], resets_ms[number] / 1000)
        ends = day.ends(rule.limit.period)
        return LimitStatus(rule, remaining[number], None if ends is None else ends - now)

    return RateLimitStatus(left(requests), left(tokens))
