"""Refusals by a rule: which rule, what it has left, and when it clears."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from authz.limits.rate_limit_status import NO_LIMITS, RateLimitStatus
from common.errors import Reason, UplionError
from ledger.limits import Counting, Rule
from ledger.periods import Today

_WHOSE = {"account": "the account", "project": "the project", "key": "this key"}


class Violation(NamedTuple):
    """One rule that has no room for a request."""

    rule: Rule
    balance: int  # what it has left, in the limit's own unit
    wait_seconds: float | None  # until the request may pass; None: the budget is spent, and waiting does not help
    clears_at: float | None  # unix time; None: never by itself, or not known


class LimitError(UplionError):
    """A request was refused by a rule."""

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
    return LimitError(max(violations, key=_clears_in), rate_limits)


def violation(rule: Rule, balance: int, wait_ms: int, day: Today, now: float) -> Violation:
    """From check.lua's reply: what the rule has left, and ms until the request may pass (-1: the budget is spent)."""
    if wait_ms < 0:
        return Violation(rule, balance, None, day.ends(rule.limit.period))
    seconds = wait_ms / 1000
    return Violation(rule, balance, seconds, now + seconds if rule.limit.kind.counting is Counting.WINDOW else None)


def timestamp(moment: float | None) -> str:
    """RFC 3339, UTC, to the millisecond; empty for never."""
    if moment is None:
        return ""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _clears_in(violation: Violation) -> tuple[int, float]:
    if violation.wait_seconds is None:
        return 1, float("inf") if violation.clears_at is None else violation.clears_at
    return 0, violation.wait_seconds


def _message(violation: Violation) -> str:
    """The kind's sentence, and when to try again."""
    rule, limit = violation.rule, violation.rule.limit
    kind = limit.kind
    sentence = kind.refusal.format(
        amount=kind.text(limit.amount, limit.currency),
        left=kind.text(violation.balance, limit.currency) if kind.is_money else violation.balance,
        per=f" a {limit.period}" if limit.period not in ("", "life") else "",
        whose=_WHOSE[rule.level] + (f' for the model "{limit.model}"' if limit.model else ""),
        rule=rule.name,
    )
    if rule.default:
        sentence += f", the default where {_WHOSE[rule.level]} has no such limit of its own; an admin can give it one"
    again = ""
    if violation.wait_seconds is not None:
        if kind.counting is Counting.BALANCE:
            sentence += ", until requests that run now give back what they do not use"
        again = f"Try again in {violation.wait_seconds:.1f} s."
    elif violation.clears_at is not None:
        again = f"It starts again at {timestamp(violation.clears_at)}."
    return f"{sentence}. {again}".rstrip()
