"""Checks and page tokens of the admin API."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Reason, UplionError
from control import requests
from control.models import read_manifest
from control.usage import micros, usage_rows

MOMENTS = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1)).map(
    lambda moment: moment.replace(tzinfo=UTC)
)


@given(MOMENTS, st.text(alphabet="abcXYZ019_", min_size=1, max_size=30))
def test_a_page_token_brings_back_the_position(moment, identifier):
    token = requests.write_position(moment, identifier)
    assert requests.read_position(token) == requests.Position(moment, identifier)


@given(st.text(max_size=60))
def test_a_strangers_token_is_refused_and_never_an_accident(token):
    for read in (requests.read_position, requests.read_name):
        try:
            read(token)
        except UplionError as problem:
            assert (problem.reason, problem.param) == (Reason.INVALID_REQUEST, "page_token")


def test_page_sizes():
    assert [requests.page_size(asked) for asked in (0, 1, 1000, 5000)] == [100, 1, 1000, 1000]


def test_micros_round_half_to_even():
    assert [micros(Decimal(cost)) for cost in ("0.0000005", "0.0000015", "1", "-0.0000015")] == [0, 2, 1_000_000, -2]


def row(name, currency, requests, cost):
    counts = dict.fromkeys(
        ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"), 1
    )
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


@given(st.decimals(min_value=0, max_value=10**12, places=18))
def test_decimal_texts_are_exact_and_plain(value):
    text = requests.decimal_text(value)
    assert Decimal(text) == value
    assert set(text) <= set("0123456789.")
    assert not text.endswith(".")
    assert "." not in text or not text.endswith("0")


def test_a_manifests_whole_numbers_are_integers_again():
    value = Struct()
    value.update(
        {
            "apiVersion": "model.youxam.com/v1alpha1",
            "kind": "AIModel",
            "metadata": {"name": "x", "creationTimestamp": None},
            "spec": {"type": "local", "model": "m", "replicas": 3, "synthetic": {"tokensPerSecond": 2.5}},
        }
    )
    model = read_manifest(value)
    assert (model.spec.replicas, model.spec.synthetic.tokensPerSecond) == (3, 2.5)
    assert msgspec.json.decode(model.to_json())["spec"]["replicas"] == 3
    for broken in (float("nan"), float("inf")):
        value["spec"]["replicas"] = broken
        with pytest.raises(UplionError):
            read_manifest(value)


def test_a_moment_before_the_epoch_is_a_position_too():
    early = datetime(1970, 1, 1, tzinfo=UTC) - timedelta(microseconds=1)
    assert requests.read_position(requests.write_position(early, "x")) == requests.Position(early, "x")
