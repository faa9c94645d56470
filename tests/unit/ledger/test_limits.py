"""What a limit may be, and how its rule is called."""

from typing import get_args

import msgspec
import pytest

from ledger.limits import (
    CONCURRENCY,
    COST_BUDGET,
    KINDS,
    PERIODS,
    REQUESTS_PER_MINUTE,
    TOKEN_BUDGET,
    TOKENS_PER_MINUTE,
    Counting,
    Limit,
    Measure,
    Rule,
    scope,
)


@pytest.mark.parametrize(
    "limit",
    [
        Limit("requests", "minute", 100),
        Limit("tokens", "life", 0, model="llama-3", shadow=True),
        Limit("cost", "month", 5_000_000, currency="USD"),
        Limit("concurrency", "", 4),
    ],
)
def test_a_limit_that_can_be_enforced_survives_json(limit: Limit) -> None:
    assert limit.problem() is None
    assert msgspec.json.decode(msgspec.json.encode(limit), type=Limit) == limit


@pytest.mark.parametrize(
    "limit",
    [
        Limit("requests", "day", 1),
        Limit("cost", "minute", 1, currency="USD"),
        Limit("concurrency", "day", 1),
        Limit("tokens", "day", -1),
        Limit("tokens", "day", 1 << 53),
        Limit("tokens", "day", 1, currency="USD"),
        Limit("cost", "day", 1),
        Limit("cost", "day", 1, currency="usd"),
    ],
)
def test_a_limit_that_nobody_could_enforce_says_why(limit: Limit) -> None:
    assert limit.problem()


def test_a_rule_is_called_by_its_level_and_window() -> None:
    rule = Rule("key", "k1", Limit("cost", "month", 5, model="llama-3", currency="USD"))
    assert (rule.name, rule.scope) == ("key/cost/month/USD/llama-3", "k:k1")
    assert Rule("account", "acc", Limit("concurrency", "", 5)).name == "account/concurrency"
    assert scope("account", "acc") == "a"


def test_every_measure_and_period_has_one_kind_and_every_kind_its_sentence() -> None:
    pairs = [(kind.measure, period) for kind in KINDS for period in kind.periods]
    assert len(pairs) == len(set(pairs))
    assert set(PERIODS) == set(get_args(Measure))
    for kind in KINDS:
        assert kind.refusal.format(amount="", left="", per="", whose="", rule="")
        assert bool(kind.balance) == (kind.counting is Counting.BALANCE)
        assert KINDS[kind.code] is kind


def test_counters_are_called_as_they_always_were() -> None:
    """By authz and billing processes of neighbouring versions."""
    assert [kind.code for kind in (REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE, TOKEN_BUDGET, COST_BUDGET, CONCURRENCY)] == [
        *range(5)
    ]
    assert TOKEN_BUDGET.field("a") == "t|a|"
    assert TOKEN_BUDGET.field("k:x", "m") == "t|k:x|m"
    assert COST_BUDGET.field("p:x", "m", "USD") == "c|p:x|m|USD"
    assert CONCURRENCY.field("a", "m") == "n|a|m"
