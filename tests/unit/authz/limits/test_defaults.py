"""Defaults: how many requests at once a key and an account have where no limit of their own says it."""

import pytest

from authz.credentials.key_record import KeyRecord, owner_id
from authz.limits.plans import Defaults, Plans
from authz.limits.prices import PriceTable
from ledger.limits import Level, Limit, Rule

_DEFAULTS = Defaults(key=2, account=3)


def found(*own: tuple[Level, Limit], key_id: str = "k") -> dict[str, tuple[int, bool]]:
    rules = tuple(Rule(level, {"account": "a", "key": "k"}[level], limit) for level, limit in own)
    record = KeyRecord(key_id, "a", bytes(32), "p", frozenset(), active=True, rules=rules)
    plan = Plans(PriceTable(), defaults=_DEFAULTS).find(record, "m", reading=False)
    return {rule.name: (rule.limit.amount, rule.default) for rule in plan.rules}


def test_who_has_no_limit_gets_the_default_ones() -> None:
    assert found() == {"account/concurrency": (3, True), "key/concurrency": (2, True)}


@pytest.mark.parametrize("amount", [1, 1000])
def test_a_limit_of_its_own_replaces_the_default_of_its_level(amount: int) -> None:
    own = found(("key", Limit("concurrency", "", amount)))
    assert own == {"account/concurrency": (3, True), "key/concurrency": (amount, False)}


def test_another_limit_or_one_of_a_model_does_not() -> None:
    own = found(("key", Limit("concurrency", "", 9, "m")), ("account", Limit("requests", "minute", 9)))
    assert {name for name, (_, default) in own.items() if default} == {"account/concurrency", "key/concurrency"}


def test_tokens_have_no_key() -> None:
    assert found(key_id=owner_id("a", "")) == {"account/concurrency": (3, True)}
