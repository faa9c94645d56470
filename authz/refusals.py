"""What a refused caller is told: the rule, its window, what it has left, and when it clears."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from authz.periods import Today
from authz.standing import NOTHING, Standing
from common.errors import Reason, UplionError
from ledger.limits import Rule

_WHOSE = {"account": "the account", "project": "the project", "key": "this key"}


class Verdict(NamedTuple):
    """One rule that has no room for a request."""

    rule: Rule
    balance: int  # what it has left, in the limit's own unit
    wait_seconds: float | None  # until the request may pass; None: not by waiting, the budget is spent
    clears_at: float | None  # unix time; None: never by itself, or nobody can say


class LimitError(UplionError):
    """A refusal by a rule."""

    def __init__(self, verdict: Verdict, standing: Standing) -> None:
        rule, limit = verdict.rule, verdict.rule.limit
        super().__init__(
            Reason.INSUFFICIENT_QUOTA if verdict.wait_seconds is None else Reason.RATE_LIMIT_EXCEEDED,
            _message(verdict),
            retry_after_seconds=verdict.wait_seconds,
            rule=rule.name,
            level=rule.level,
            measure=limit.measure,
            period=limit.period,
            limit=limit.amount,
            remaining=verdict.balance,
            clears_at=timestamp(verdict.clears_at),
        )
        self.verdict = verdict
        self.standing = standing


def refusal(verdicts: Sequence[Verdict], standing: Standing = NOTHING) -> LimitError:
    """Of several rules the one that clears last: a retry before would be refused again."""
    return LimitError(max(verdicts, key=_lasts), standing)


def verdict(rule: Rule, balance: int, wait_ms: int, day: Today, now: float) -> Verdict:
    """From check.lua's answer: what the rule has left, and ms until the request may pass (-1: the budget is spent)."""
    if wait_ms < 0:
        return Verdict(rule, balance, None, day.ends(rule.limit.period))
    seconds = wait_ms / 1000
    return Verdict(rule, balance, seconds, now + seconds if rule.limit.period == "minute" else None)


def timestamp(moment: float | None) -> str:
    """RFC 3339, UTC, to the millisecond; empty for never."""
    if moment is None:
        return ""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _lasts(verdict: Verdict) -> tuple[int, float]:
    if verdict.wait_seconds is None:
        return 1, float("inf") if verdict.clears_at is None else verdict.clears_at
    return 0, verdict.wait_seconds


def _message(verdict: Verdict) -> str:
    rule, limit = verdict.rule, verdict.rule.limit
    whose = _WHOSE[rule.level] + (f' for the model "{limit.model}"' if limit.model else "")
    again = f"Try again in {verdict.wait_seconds:.1f} s." if verdict.wait_seconds is not None else ""
    if limit.measure == "concurrency":
        return f"The limit of {limit.amount} requests at once of {whose} is reached ({rule.name}). {again}"
    if limit.measure == "requests":
        return f"The limit of {limit.amount} requests a minute of {whose} is reached ({rule.name}). {again}"
    per = "" if limit.period == "life" else f" a {limit.period}"
    if limit.measure == "tokens":
        amount, left = f"{limit.amount} tokens", f"{verdict.balance}"
    else:
        amount, left = _money(limit.amount, limit.currency), _money(verdict.balance, limit.currency)
    if limit.period == "minute":
        few = "too few for this request"
        return f"The limit of {amount} a minute of {whose} has {left} left ({rule.name}), {few}. {again}"
    few = "too little for this request"
    if again:
        few += ", until requests that run now give back what they do not use"
    elif verdict.clears_at is not None:
        again = f"It starts again at {timestamp(verdict.clears_at)}."
    return f"The budget of {amount}{per} of {whose} has {left} left ({rule.name}), {few}. {again}".rstrip()


def _money(millionths: int, currency: str) -> str:
    whole, rest = divmod(millionths, 1_000_000)
    decimals = f"{rest:06}".rstrip("0").ljust(2, "0")
    return f"{whole}.{decimals} {currency}"
