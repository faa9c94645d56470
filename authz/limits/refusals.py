"""What a refused caller is told: the rule, its window, what it has left, and when it clears."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from authz.limits.rate_limit_status import NO_LIMITS, RateLimitStatus
from common.errors import Reason, UplionError
from ledger.limits import Rule
from ledger.periods import Today

_WHOSE = {"account": "the account", "project": "the project", "key": "this key"}


class Violation(NamedTuple):
    """One rule that has no room for a request."""

    rule: Rule
    balance: int  # what it has left, in the limit's own unit
    wait_seconds: float | None  # until the request may pass; None: not by waiting, the budget is spent
    clears_at: float | None  # unix time; None: never by itself, or nobody can say


class LimitError(UplionError):
    """A refusal by a rule."""

    def __init__(self, violation: Violation, rate_limits: RateLimitStatus) -> None:
        rule, limit = violation.rule, violation.rule.limit
        super().__init__(
            Reason.INSUFFICIENT_QUOTA if violation.wait_seconds is None else Reason.RATE_LIMIT_EXCEEDED,
            _message(violation),
            retry_after_seconds=violation.wait_seconds,
            rule=rule.name,
            level=rule.level,
            measure=limit.measure,
            period=limit.period,
            limit=limit.amount,
            remaining=violation.balance,
            clears_at=timestamp(violation.clears_at),
        )
        self.violation = violation
        self.rate_limits = rate_limits


def refusal(violations: Sequence[Violation], rate_limits: RateLimitStatus = NO_LIMITS) -> LimitError:
    """Of several rules the one that clears last: a retry before would be refused again."""
    return LimitError(max(violations, key=_lasts), rate_limits)


def violation(rule: Rule, balance: int, wait_ms: int, day: Today, now: float) -> Violation:
    """From check.lua's answer: what the rule has left, and ms until the request may pass (-1: the budget is spent)."""
    if wait_ms < 0:
        return Violation(rule, balance, None, day.ends(rule.limit.period))
    seconds = wait_ms / 1000
    return Violation(rule, balance, seconds, now + seconds if rule.limit.period == "minute" else None)


def timestamp(moment: float | None) -> str:
    """RFC 3339, UTC, to the millisecond; empty for never."""
    if moment is None:
        return ""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _lasts(violation: Violation) -> tuple[int, float]:
    if violation.wait_seconds is None:
        return 1, float("inf") if violation.clears_at is None else violation.clears_at
    return 0, violation.wait_seconds


def _message(violation: Violation) -> str:
    rule, limit = violation.rule, violation.rule.limit
    whose = _WHOSE[rule.level] + (f' for the model "{limit.model}"' if limit.model else "")
    again = f"Try again in {violation.wait_seconds:.1f} s." if violation.wait_seconds is not None else ""
    if limit.measure == "concurrency":
        return f"The limit of {limit.amount} requests at once of {whose} is reached ({rule.name}). {again}"
    if limit.measure == "requests":
        return f"The limit of {limit.amount} requests a minute of {whose} is reached ({rule.name}). {again}"
    per = "" if limit.period == "life" else f" a {limit.period}"
    if limit.measure == "tokens":
        amount, left = f"{limit.amount} tokens", f"{violation.balance}"
    else:
        amount, left = _money(limit.amount, limit.currency), _money(violation.balance, limit.currency)
    if limit.period == "minute":
        few = "too few for this request"
        return f"The limit of {amount} a minute of {whose} has {left} left ({rule.name}), {few}. {again}"
    few = "too little for this request"
    if again:
        few += ", until requests that run now give back what they do not use"
    elif violation.clears_at is not None:
        again = f"It starts again at {timestamp(violation.clears_at)}."
    return f"The budget of {amount}{per} of {whose} has {left} left ({rule.name}), {few}. {again}".rstrip()


def _money(millionths: int, currency: str) -> str:
    whole, rest = divmod(millionths, 1_000_000)
    decimals = f"{rest:06}".rstrip("0").ljust(2, "0")
    return f"{whole}.{decimals} {currency}"
