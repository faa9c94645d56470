"""Texts of the admin API's fields."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from control.requests import fields


@given(st.decimals(min_value=0, max_value=10**12, places=18))
def test_decimal_texts_are_exact_and_plain(value):
    text = fields.decimal_text(value)
    assert Decimal(text) == value
    assert set(text) <= set("0123456789.")
    assert not text.endswith(".")
    assert "." not in text or not text.endswith("0")
