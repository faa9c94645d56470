"""Limits as the contract has them, checked on their way to the database."""

import json

import pytest
from uplion.control.v1.limit_pb2 import Limit, LimitMeasure, LimitPeriod

from common.errors import Reason, UplionError
from control.requests import limit_fields
from ledger.limits import PERIODS

REQUESTS = LimitMeasure.LIMIT_MEASURE_REQUESTS
TOKENS = LimitMeasure.LIMIT_MEASURE_TOKENS
COST = LimitMeasure.LIMIT_MEASURE_COST
CONCURRENCY = LimitMeasure.LIMIT_MEASURE_CONCURRENCY
MINUTE = LimitPeriod.LIMIT_PERIOD_MINUTE
DAY = LimitPeriod.LIMIT_PERIOD_DAY
EVERY = [
    Limit(
        measure=LimitMeasure.Value(f"LIMIT_MEASURE_{measure.upper()}"),
        period=LimitPeriod.Value(f"LIMIT_PERIOD_{(period or 'unspecified').upper()}"),
        amount=number,
        model=model,
        currency="EUR" if measure == "cost" else "",
        shadow=bool(model),
    )
    for measure, periods in PERIODS.items()
    for number, period in enumerate(periods)
    for model in ("", "org/model")
]


def test_every_kind_of_limit_comes_back_as_it_was_given():
    assert limit_fields.shown(limit_fields.checked(EVERY)) == EVERY
    assert limit_fields.checked([]) == "[]"


def test_the_database_has_them_as_authz_reads_them():
    stored = limit_fields.checked([Limit(measure=CONCURRENCY, amount=4), Limit(measure=TOKENS, period=DAY, model="m")])
    assert json.loads(stored) == [
        {"measure": "concurrency", "period": "", "amount": 4},
        {"measure": "tokens", "period": "day", "amount": 0, "model": "m"},
    ]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        (Limit(amount=1), ".measure"),
        (Limit(measure=9, amount=1), ".measure"),  # type: ignore[arg-type]
        (Limit(measure=TOKENS, period=9, amount=1), ".period"),  # type: ignore[arg-type]
        (Limit(measure=REQUESTS, period=DAY, amount=1), ".period"),
        (Limit(measure=CONCURRENCY, period=MINUTE, amount=1), ".period"),
        (Limit(measure=TOKENS, period=DAY, amount=1 << 53), ".amount"),
        (Limit(measure=TOKENS, period=DAY, amount=1, currency="USD"), ".currency"),
        (Limit(measure=COST, period=DAY, amount=1), ".currency"),
        (Limit(measure=COST, period=DAY, amount=1, currency="usd"), ".currency"),
        (Limit(measure=TOKENS, period=DAY, model="m" * 254), ".model"),
        (Limit(measure=TOKENS, period=DAY, amount=5), ""),  # as the one before it
    ],
)
def test_a_wrong_limit_is_named(wrong, param):
    with pytest.raises(UplionError) as caught:
        limit_fields.checked([Limit(measure=TOKENS, period=DAY, amount=1), wrong])
    assert (caught.value.reason, caught.value.param) == (Reason.INVALID_REQUEST, f"limits[1]{param}")


def test_one_in_shadow_may_stand_beside_one_that_refuses():
    both = [Limit(measure=TOKENS, period=DAY, amount=9), Limit(measure=TOKENS, period=DAY, amount=5, shadow=True)]
    assert limit_fields.shown(limit_fields.checked(both)) == both
    with pytest.raises(UplionError):
        limit_fields.checked([both[1], both[1]])


def test_there_are_not_endlessly_many():
    many = [Limit(measure=TOKENS, period=DAY, model=f"m{number}") for number in range(51)]
    assert len(limit_fields.shown(limit_fields.checked(many[:50]))) == 50
    with pytest.raises(UplionError) as caught:
        limit_fields.checked(many)
    assert caught.value.param == "limits"
