"""The codes of ISO 4217."""

import pytest

from ledger import currencies


def test_every_code_is_three_capital_letters():
    assert len(currencies.CODES) == 177
    assert all(len(code) == 3 and code.isascii() and code.isalpha() and code.isupper() for code in currencies.CODES)


@pytest.mark.parametrize("code", ["USD", "EUR", "CHF", "JPY", "XAU", "ZWG", "XCG"])
def test_a_code_of_the_list_is_no_problem(code):
    assert currencies.problem(code) is None


@pytest.mark.parametrize("code", ["", "usd", "US$", "ABC", "XXX", "DEM", "USDT", "\uff35\uff33\uff24"])
def test_anything_else_is_one(code):
    assert currencies.problem(code)


def test_a_code_in_small_letters_is_suggested():
    assert "did you mean USD?" in str(currencies.problem("usd"))
