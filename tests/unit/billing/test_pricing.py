"""Costs are exact, and every one names its price version."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from uplion.billing.v1.usage_event_pb2 import UsageEvent

from billing.entry import decode
from billing.pricing import Price, PriceList, amount

MOMENT = datetime(2026, 11, 1, tzinfo=UTC)
MONEY = st.decimals(min_value=0, max_value=10**9, places=12)
TOKENS = st.integers(min_value=0, max_value=(1 << 32) - 1)


def price(version=1, since=MOMENT, input="1", cached=None, output="2", request="0", currency="EUR"):  # noqa: A002
    cached = None if cached is None else Decimal(cached)
    return Price(version, "m", since, currency, Decimal(input), cached, Decimal(output), Decimal(request))


def entry(*, input_tokens=0, cached_tokens=0, output_tokens=0, status=1, end_time=MOMENT, model="m"):
    event = UsageEvent(request_id="r", attempt=1, account="a", key="k", model=model, status=status)
    event.end_time.CopyFrom(Timestamp(seconds=int(end_time.timestamp())))
    event.usage.input_tokens, event.usage.cached_tokens = input_tokens, cached_tokens
    event.usage.output_tokens = output_tokens
    return decode(event.SerializeToString(), MOMENT.timestamp() + 86_000)


@given(MONEY, st.none() | MONEY, MONEY, MONEY, TOKENS, TOKENS, TOKENS)
def test_a_cost_is_exactly_the_sum_of_its_parts(prompt, cached, output, request, tokens, cached_tokens, output_tokens):
    prices = PriceList([price(input=prompt, cached=cached, output=output, request=request)])
    charge = prices.charge(entry(input_tokens=tokens, cached_tokens=cached_tokens, output_tokens=output_tokens))
    found = min(tokens, cached_tokens)
    expected = (
        (tokens - found) * Fraction(prompt)
        + found * Fraction(prompt if cached is None else cached)
        + output_tokens * Fraction(output)
    ) / 1_000_000 + Fraction(request)
    assert Fraction(amount(charge.units)) == expected


def test_the_latest_price_in_force_counts_and_among_equals_the_highest_version():
    day = timedelta(days=1)
    prices = PriceList(
        [price(4, MOMENT + day), price(2), price(3), price(1, MOMENT - day)],
    )
    versions = {
        moment: (prices.charge(entry(end_time=moment)) or [None])[0]
        for moment in (MOMENT - 2 * day, MOMENT - day, MOMENT - day / 2, MOMENT, MOMENT + day / 2)
    }
    assert list(versions.values()) == [None, 1, 1, 3, 3]


def test_a_model_without_a_price_has_no_cost_rather_than_none_to_pay():
    assert PriceList([price()]).charge(entry(model="other")) is None
    assert PriceList([price(input="0", output="0")]).charge(entry(input_tokens=5)).units == 0


def test_the_requests_own_price_is_due_when_it_completed():
    prices = PriceList([price(request="0.5")])
    due = {status: amount(prices.charge(entry(status=status)).units) for status in range(1, 7)}
    assert due == {1: Decimal("0.5"), 2: 0, 3: 0, 4: 0, 5: 0, 6: 0}


def test_a_price_finer_than_the_database_holds_is_refused():
    with pytest.raises(ValueError, match="12 decimals"):
        PriceList([price(input="0.0000000000001")])
