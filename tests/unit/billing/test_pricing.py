"""Costs are exact, and every one names its price version."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from uplion.billing.v1.usage_event_pb2 import AttemptStatus, UsageEvent

from billing.entry import Arrival, decode
from billing.policy import BILL, INPUT_ONLY, WAIVE
from billing.pricing import Price, PriceList
from ledger.prices import RATES, amount

MOMENT = datetime(2026, 11, 1, tzinfo=UTC)
MONEY = st.decimals(min_value=0, max_value=10**9, places=12)
CANCELLED = AttemptStatus.ATTEMPT_STATUS_CANCELLED
TOKENS = st.integers(min_value=0, max_value=10**9)  # more is no usage event


def price(version=1, since=MOMENT, currency="EUR", input="1", cached=None, output="2", request="0", **others):  # noqa: A002
    numbers = {
        "input_per_million_tokens": Decimal(input),
        "cached_per_million_tokens": None if cached is None else Decimal(cached),
        "output_per_million_tokens": Decimal(output),
        "per_request": Decimal(request),
    }
    rates = {**dict.fromkeys(RATES), "per_gpu_second": Decimal(0), **numbers, **others}
    return Price(version, "m", since, currency, rates)


def entry(*, status=1, end_time=MOMENT, model="m", micros=None, **tokens):
    event = UsageEvent(request_id="r", attempt=1, account="a", key="k", model=model, status=status)
    event.end_time.CopyFrom(Timestamp(seconds=int(end_time.timestamp())))
    for name, count in tokens.items():
        setattr(event.usage, name, count)
    if micros is not None:
        event.compute_duration.FromMicroseconds(micros)
    return decode(event.SerializeToString(), Arrival(int((MOMENT.timestamp() + 86_000) * 1e9), None))


def charged(prices, made, action=BILL):
    return PriceList(prices).charge(made, action)


@given(
    st.fixed_dictionaries({"input": MONEY, "output": MONEY, "request": MONEY, "cached": st.none() | MONEY}),
    st.fixed_dictionaries(
        {
            "cache_write_per_million_tokens": st.none() | MONEY,
            "reasoning_per_million_tokens": st.none() | MONEY,
            "per_gpu_second": MONEY,
        }
    ),
    st.tuples(TOKENS, TOKENS, TOKENS, TOKENS, TOKENS),
    st.none() | st.integers(min_value=0, max_value=10**13),
)
def test_a_cost_is_exactly_the_sum_of_its_parts(numbers, others, counts, micros):
    tokens, cached_tokens, written_tokens, output_tokens, reasoning_tokens = counts
    made = entry(
        input_tokens=tokens,
        cached_tokens=cached_tokens,
        cache_write_tokens=written_tokens,
        output_tokens=output_tokens,
        reasoning_tokens=reasoning_tokens,
        micros=micros,
    )
    charge = charged([price(**numbers, **others)], made)
    found = min(tokens, cached_tokens)
    written = min(tokens - found, written_tokens)
    thought = min(output_tokens, reasoning_tokens)

    def rate(amount, instead):
        return Fraction(instead if amount is None else amount)

    expected = (
        (tokens - found - written) * Fraction(numbers["input"])
        + found * rate(numbers["cached"], numbers["input"])
        + written * rate(others["cache_write_per_million_tokens"], numbers["input"])
        + (output_tokens - thought) * Fraction(numbers["output"])
        + thought * rate(others["reasoning_per_million_tokens"], numbers["output"])
        + (micros or 0) * Fraction(others["per_gpu_second"])
    ) / 1_000_000 + Fraction(numbers["request"])
    assert Fraction(amount(charge.units)) == expected


def test_the_latest_price_in_force_counts_and_among_equals_the_highest_version():
    day = timedelta(days=1)
    prices = [price(4, MOMENT + day), price(2), price(3), price(1, MOMENT - day)]
    moments = (MOMENT - 2 * day, MOMENT - day, MOMENT - day / 2, MOMENT, MOMENT + day / 2)
    versions = [(charged(prices, entry(end_time=moment, output_tokens=1)) or [None])[0] for moment in moments]
    assert versions == [None, 1, 1, 3, 3]


def test_a_model_without_a_price_has_no_cost_rather_than_none_to_pay():
    assert charged([price()], entry(model="other", output_tokens=1)) is None
    assert charged([price(input="0", output="0")], entry(input_tokens=5)).units == 0


def test_an_explicit_zero_costs_what_zero_costs_and_a_missing_value_is_unknown():
    assert charged([price()], entry(output_tokens=0)).units == 0
    assert charged([price()], entry()) is None
    assert charged([price()], entry(status=CANCELLED)).units == 0  # unset there means that nothing was generated


def test_the_requests_own_price_is_due_when_it_completed():
    due = {
        status: amount(charged([price(request="0.5")], entry(status=status, input_tokens=0)).units)
        for status in range(1, 7)
    }
    assert due == {1: Decimal("0.5"), 2: 0, 3: 0, 4: 0, 5: 0, 6: 0}


def test_a_policy_takes_the_output_or_everything_from_the_cost():
    prices = [price(input="1", output="10", request="1", per_gpu_second=Decimal(1))]
    made = entry(input_tokens=1_000_000, output_tokens=1_000_000, micros=2_000_000)
    costs = [amount(charged(prices, made, action).units) for action in (BILL, INPUT_ONLY, WAIVE)]
    assert costs == [14, 1, 0]


def test_a_price_finer_than_the_database_holds_is_refused():
    with pytest.raises(ValueError, match="12 decimals"):
        PriceList([price(input="0.0000000000001")])
