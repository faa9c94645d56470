"""The sentence of each kind of limit, whole."""

import pytest

from authz.limits.refusals import Violation, refusal
from common.errors import Reason
from ledger.limits import Level, Limit, Rule

CLEARS = 1_798_761_600.0  # 2027-01-01


def sentence(limit: Limit, *, balance: int = 0, wait: float | None = None, level: Level = "key") -> str:
    clears = CLEARS if wait is None and limit.period == "month" else None
    return refusal([Violation(Rule(level, "id", limit), balance, wait, clears)]).message


@pytest.mark.parametrize(
    ("limit", "balance", "wait", "message"),
    [
        (
            Limit("requests", "minute", 7),
            0,
            2.25,
            "The limit of 7 requests a minute of this key is reached (key/requests/minute). Try again in 2.2 s.",
        ),
        (
            Limit("concurrency", "", 4, model="m"),
            0,
            1.0,
            'The limit of 4 requests at once of this key for the model "m" is reached (key/concurrency/m).'
            " Try again in 1.0 s.",
        ),
        (
            Limit("tokens", "minute", 100),
            12,
            3.0,
            "The limit of 100 tokens a minute of this key has 12 left (key/tokens/minute), too few for this request."
            " Try again in 3.0 s.",
        ),
        (
            Limit("tokens", "life", 100),
            12,
            None,
            "The budget of 100 tokens of this key has 12 left (key/tokens/life), too little for this request.",
        ),
        (
            Limit("cost", "month", 5_000_000, currency="USD"),
            1,
            None,
            "The budget of 5.00 USD a month of this key has 0.000001 USD left (key/cost/month/USD), too little for this"
            " request. It starts again at 2027-01-01T00:00:00.000Z.",
        ),
        (
            Limit("cost", "day", 5_500_000, currency="EUR"),
            500_000,
            1.0,
            "The budget of 5.50 EUR a day of this key has 0.50 EUR left (key/cost/day/EUR), too little for this"
            " request, until requests that run now give back what they do not use. Try again in 1.0 s.",
        ),
    ],
)
def test_a_refusal_names_the_rule_what_it_has_left_and_when_to_come_back(
    limit: Limit, balance: int, wait: float | None, message: str
) -> None:
    assert sentence(limit, balance=balance, wait=wait) == message


def test_of_several_rules_the_one_that_clears_last_is_named() -> None:
    soon = Violation(Rule("key", "k", Limit("requests", "minute", 1)), 0, 1.0, None)
    later = Violation(Rule("account", "a", Limit("tokens", "month", 1)), 0, None, CLEARS)
    never = Violation(Rule("project", "p", Limit("tokens", "life", 1)), 0, None, None)
    assert refusal([soon, never, later]).violation is never
    assert refusal([later, soon]).violation is later
    assert refusal([soon]).reason is Reason.RATE_LIMIT_EXCEEDED
    assert refusal([later]).reason is Reason.INSUFFICIENT_QUOTA
