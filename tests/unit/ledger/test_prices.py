"""Price arithmetic is exact: a rate becomes an integer, and a cost is a sum of products."""

from decimal import Decimal

import pytest

from ledger.prices import RATES, Rates, amount, in_trillionths, to_units, token_cost, token_price, token_rate
from ledger.usage_columns import INPUT, OUTPUT, TOKEN_CLASSES

ROW = {
    **dict.fromkeys(RATES),
    "input_per_million_tokens": Decimal("0.5"),
    "cached_per_million_tokens": Decimal("0.000000000001"),
    "output_per_million_tokens": Decimal(2),
    "reasoning_per_million_tokens": Decimal(3),
    "per_request": Decimal("0.25"),
    "per_gpu_second": Decimal("0.01"),
}

NONE_LATER = (0,) * (len(TOKEN_CLASSES) - 5)


def test_a_class_without_a_rate_has_that_of_the_class_it_is_a_part_of():
    assert [token_rate(ROW, each) for each in TOKEN_CLASSES[:5]] == [
        Decimal("0.5"),
        Decimal("0.000000000001"),
        Decimal("0.5"),
        2,
        3,
    ]
    assert token_price(ROW, OUTPUT) == Decimal("0.000002")


def test_rates_are_integers():
    rates = Rates.of(ROW)
    assert rates.token[:5] == (5 * 10**11, 1, 5 * 10**11, 2 * 10**12, 3 * 10**12)
    assert rates.input_token[:5] == (5 * 10**11, 1, 5 * 10**11, 0, 0)
    assert (rates.request, rates.compute_microsecond) == (25 * 10**16, 10**10)
    assert (rates.dearest_token(INPUT), rates.dearest_token(OUTPUT)) == (5 * 10**11, 3 * 10**12)


def test_a_cost_is_exact():
    units = token_cost((10, 4, 1, 7, 2, *NONE_LATER), Rates.of(ROW).token)
    assert units == 6 * 5 * 10**11 + 4 * 1 + 5 * 2 * 10**12 + 2 * 3 * 10**12
    assert amount(units) == Decimal("0.000019000000000004")
    assert to_units(amount(units)) == units


def test_an_estimate_is_rounded_up():
    assert [in_trillionths(units) for units in (0, 1, 10**6, 10**6 + 1)] == [0, 1, 1, 2]


def test_a_rate_finer_than_the_database_holds_is_refused():
    with pytest.raises(ValueError, match="12 decimals"):
        Rates.of(ROW | {"per_request": Decimal("0.0000000000001")})
