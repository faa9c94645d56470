"""The local share of a limit of requests at once: what has ended does not use it up."""

import pytest

from authz.credentials.key_record import KeyRecord
from authz.limits.local_fallback import LocalFallback
from authz.limits.plans import Plan, Plans
from authz.limits.prices import PriceTable
from ledger.limits import Limit, Rule


def a_plan(*limits: Limit) -> Plan:
    rules = tuple(Rule("account", "a", limit) for limit in limits)
    record = KeyRecord("k", "a", bytes(32), "p", frozenset(), active=True, rules=rules)
    return Plans(PriceTable()).find(record, "m", reading=False)


@pytest.fixture
def fallback() -> LocalFallback:
    return LocalFallback(0.25, lambda: 100.0)


def taken(fallback: LocalFallback, plan: Plan, reservation: str) -> list[int] | None:
    return fallback.take(plan, (10, 0, 1), reservation)


def test_a_slot_comes_back_when_its_request_has_ended(fallback: LocalFallback) -> None:
    plan = a_plan(Limit("concurrency", "", 40))
    fallback.remember(plan, [8])
    fallback.begin_outage()
    for number in range(1000):
        assert taken(fallback, plan, str(number)) == [1]
        assert fallback.holds_slots
        fallback.free_slot(str(number))
        fallback.free_slot(str(number))  # twice is once
    assert not fallback.holds_slots
    assert taken(fallback, plan, "a") == [1]
    assert taken(fallback, plan, "b") == [0]
    fallback.free_slot("of another process")
    assert taken(fallback, plan, "c") is None


def test_what_is_counted_for_good_stays_taken(fallback: LocalFallback) -> None:
    plan = a_plan(Limit("concurrency", "", 40), Limit("requests", "minute", 100))
    fallback.remember(plan, [40, 8])
    fallback.begin_outage()
    for number in range(2):
        assert taken(fallback, plan, str(number)) == [9, 1 - number]
        fallback.free_slot(str(number))
    assert taken(fallback, plan, "2") is None
