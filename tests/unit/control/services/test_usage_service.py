"""Rows of usage and their rounding."""

from decimal import Decimal

from control.services.usage_service import micros, usage_rows
from ledger.usage_columns import TOKEN_COLUMNS


def test_micros_round_half_to_even():
    assert [micros(Decimal(cost)) for cost in ("0.0000005", "0.0000015", "1", "-0.0000015")] == [0, 2, 1_000_000, -2]


def row(name, currency, requests, cost):
    counts = dict.fromkeys(TOKEN_COLUMNS, 1)
    unpriced = {"unpriced_requests": 0 if currency else requests, "unpriced_tokens": 0 if currency else 2}
    sums = {"requests": requests, "cost": Decimal(cost), "compute_seconds": Decimal("0.5")}
    return {"name": name, "currency": currency, **counts, **unpriced, **sums}


def test_what_had_no_price_joins_its_groups_only_row_and_currencies_stay_apart():
    sums = [
        row("m", "USD", 1, "2"),
        row("m", "EUR", 2, "1.0000010"),
        row("m", "", 5, "0"),
        row("n", "USD", 1, "1"),
        row("n", "", 1, "0"),
    ]
    found = [(each.group, each.currency, each.requests, each.unpriced_requests, each.cost) for each in usage_rows(sums)]
    assert found == [
        ("m", "USD", 1, 0, "2"),
        ("m", "EUR", 2, 0, "1.000001"),
        ("m", "", 5, 5, "0"),
        ("n", "USD", 2, 1, "1"),
    ]
    assert usage_rows(sums)[-1].compute_duration.ToMilliseconds() == 1000
