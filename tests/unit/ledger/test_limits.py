"""What a limit may be, and how its rule is called."""

import msgspec
import pytest

from ledger.limits import Limit, Rule, scope


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
