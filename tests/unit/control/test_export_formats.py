"""Costs by class of use, and the files they are written into."""

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uplion.billing.v1.usage_event_pb2 import AttemptStatus, UsageEvent
from uplion.control.v1.usage_pb2 import UsageClass
from uplion.inference.v1.sampling_pb2 import TokenUsage

from billing.entry import Arrival, decode
from billing.policy import BILL, INPUT_ONLY, WAIVE
from billing.pricing import Price, PriceList
from control.charges import added, charges, total
from control.export_formats import COLUMNS, FOCUS_COLUMNS, JSON_END, write_csv, write_focus, write_json
from control.services.usage_service import margin_rows
from ledger.prices import RATES as RATE_COLUMNS
from ledger.prices import amount
from ledger.usage_columns import TOKEN_COLUMNS

COMPLETED, CANCELLED = AttemptStatus.ATTEMPT_STATUS_COMPLETED, AttemptStatus.ATTEMPT_STATUS_CANCELLED
HOUR = datetime(2026, 12, 31, 23, tzinfo=UTC)
RATES = dict.fromkeys(RATE_COLUMNS) | {
    "input_per_million_tokens": Decimal("0.15"),
    "cached_per_million_tokens": Decimal("0.01"),
    "cache_write_per_million_tokens": None,
    "output_per_million_tokens": Decimal("0.6"),
    "reasoning_per_million_tokens": None,
    "per_request": Decimal("0.001"),
    "per_gpu_second": Decimal("0.0002"),
}


def rollup(**fields):
    names = dict.fromkeys(("account_name", "project_name", "key_name"))
    texts = {
        "account": "a",
        "project": "",
        "key": "k",
        "model": "m",
        "tier": "default",
        "currency": "EUR",
        "policy": "",
    }
    counts = {"requests": 1} | dict.fromkeys(TOKEN_COLUMNS, 0)
    sums = {"compute_seconds": Decimal(0), "cost": Decimal(0)}
    return {"hour": HOUR, "price_version": 1, **names, **texts, **counts, **sums, **fields}


@given(st.data())
def test_the_classes_costs_are_what_billing_charged(data):
    """For any attempts of one price and policy, summed as rollups are."""
    whole = st.integers(0, 10_000)
    prices = PriceList([Price(version=1, model="m", effective_from=HOUR, currency="EUR", rates=RATES)])
    action = data.draw(st.sampled_from((BILL, INPUT_ONLY, WAIVE)))
    row, completed = rollup(requests=0, policy=action), 0
    for _ in range(data.draw(st.integers(1, 5))):
        input_tokens, output_tokens = data.draw(whole), data.draw(whole)
        cached = data.draw(st.integers(0, input_tokens))
        counts = {
            "input_tokens": input_tokens,
            "cached_tokens": cached,
            "cache_write_tokens": data.draw(st.integers(0, input_tokens - cached)),
            "output_tokens": output_tokens,
            "reasoning_tokens": data.draw(st.integers(0, output_tokens)),
        }
        status, microseconds = data.draw(st.sampled_from((COMPLETED, CANCELLED))), data.draw(whole)
        event = UsageEvent(request_id="r", attempt=1, account="a", key="k", model="m", status=status)
        event.usage.MergeFrom(TokenUsage(**counts))
        event.compute_duration.FromMicroseconds(microseconds)
        event.end_time.FromDatetime(HOUR)
        charge = prices.charge(decode(event.SerializeToString(), Arrival(int(HOUR.timestamp() * 1e9), None)), action)
        assert charge is not None
        row["cost"] += amount(charge.units)
        row["compute_seconds"] += Decimal(microseconds).scaleb(-6)
        row["requests"] += 1
        completed += status == COMPLETED
        for name, count in counts.items():
            row[name] += count
    parts = charges(row, RATES)
    assert total(parts) == total(added(parts)) == row["cost"]
    found = {part.usage_class: part for part in parts}
    request = found[UsageClass.USAGE_CLASS_REQUEST]
    assert request.quantity == row["requests"]
    assert request.cost == (completed * Decimal("0.001") if action == BILL else 0)
    tokens = [part.quantity for part in parts if part.usage_class < UsageClass.USAGE_CLASS_COMPUTE]
    assert sum(tokens) == row["input_tokens"] + row["output_tokens"]


def test_what_was_priced_before_versions_were_known_stays_whole():
    parts = charges(rollup(price_version=0, cost=Decimal("1.5"), input_tokens=3), None)
    assert {part.usage_class: part.cost for part in parts if part.cost} == {
        UsageClass.USAGE_CLASS_UNSPECIFIED: Decimal("1.5")
    }


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1"])
def test_no_text_is_a_formula_in_a_spreadsheet(text):
    row = rollup(model=text, account_name=text, key_name=text, input_tokens=5)
    for write in (write_csv, write_focus):
        for line in csv.DictReader(io.StringIO(write([row], {1: RATES}, True), newline="")):
            assert f"'{text}" in line.values()
            assert text not in line.values()


def test_files_have_their_columns_and_come_in_pieces():
    pieces = [[rollup()], [rollup(model='sa"y, "ü"'), rollup(cost=Decimal("1E-12"))]]
    whole = "".join(write_json(rows, {}, number == 0) for number, rows in enumerate(pieces)) + JSON_END
    assert [row["model"] for row in json.loads(whole)] == ["m", 'sa"y, "ü"', "m"]
    assert json.loads(whole)[2]["cost"] == "0.000000000001"
    assert json.loads(write_json((), {}, True) + JSON_END) == []
    text = "".join(write_csv(rows, {}, number == 0) for number, rows in enumerate(pieces))
    lines = list(csv.reader(io.StringIO(text, newline="")))
    assert (tuple(lines[0]), len(lines), lines[2][4]) == (COLUMNS, 4, 'sa"y, "ü"')


def test_a_focus_line_says_when_what_and_how_much():
    row = rollup(input_tokens=1_000_000, policy="waived", requests=2)
    text = write_focus([row], {1: RATES}, True)
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert tuple(lines[0]) == FOCUS_COLUMNS
    tokens, requests = lines
    assert (tokens["ListCost"], tokens["BilledCost"], tokens["EffectiveCost"]) == ("0.15", "0", "0")
    assert (tokens["ConsumedQuantity"], tokens["PricingUnit"], tokens["ChargePeriodEnd"]) == (
        "1000000",
        "Tokens",
        "2027-01-01T00:00:00Z",
    )
    assert (tokens["BillingPeriodStart"], tokens["BillingPeriodEnd"]) == (
        "2026-12-01T00:00:00Z",
        "2027-01-01T00:00:00Z",
    )
    assert (requests["ConsumedQuantity"], requests["PricingQuantity"], requests["x_UsageClass"]) == (
        "2",
        "0",
        "request",
    )


def test_margin_is_revenue_without_the_hours_and_idle_is_what_nobody_used():
    revenue: list[Any] = [
        {"model": "m", "currency": "EUR", "cost": Decimal(10), "compute_seconds": Decimal(1800)},
        {"model": "m", "currency": "", "cost": Decimal(0), "compute_seconds": Decimal(1800)},
        {"model": "gone", "currency": "EUR", "cost": Decimal(1), "compute_seconds": Decimal(1)},
    ]
    seconds: list[Any] = [{"model": "idle", "seconds": Decimal(3600)}, {"model": "m", "seconds": Decimal(2 * 3600)}]
    rows = {row.model: row for row in margin_rows(revenue, seconds, Decimal("2.5"))}
    assert (rows["m"].revenue, rows["m"].idle_share, rows["m"].revenue_per_available_hour, rows["m"].margin) == (
        "10",
        0.5,
        "5",
        "5",
    )
    assert (rows["idle"].currency, rows["idle"].idle_share, rows["idle"].margin) == ("", 1.0, "-2.5")
    assert not rows["gone"].HasField("idle_share")
    assert margin_rows(revenue, seconds, None)[0].margin == ""
