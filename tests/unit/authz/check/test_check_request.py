"""What is read from Envoy's CheckRequest."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authz.check import check_request
from authz.check.check_response import duration
from common.operations import OPENAI_FACTS


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["max_tokens", "max_completion_tokens", "n"]), st.floats()))
def test_no_number_from_a_body_breaks_the_estimate(facts: dict[str, float]) -> None:
    output = check_request.wanted_output_tokens(OPENAI_FACTS, facts, 1000)
    assert output is None or 1 <= output <= 1000
    assert 1 <= check_request.wanted_choices(OPENAI_FACTS, facts) <= 128


def test_max_completion_tokens_wins() -> None:
    assert (
        check_request.wanted_output_tokens(OPENAI_FACTS, {"max_tokens": 5.0, "max_completion_tokens": 7.0}, 1000) == 7
    )
    assert check_request.wanted_output_tokens(OPENAI_FACTS, {"max_tokens": 1e400}, 1000) == 1000
    assert check_request.wanted_output_tokens(OPENAI_FACTS, {"max_tokens": math.nan}, 1000) is None


@settings(deadline=None)
@given(st.text() | st.none(), st.integers(min_value=-1, max_value=1 << 40))
def test_the_input_estimate_is_at_least_one(declared: str | None, size: int) -> None:
    assert check_request.estimated_input_tokens(declared, size) >= 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.012, "12ms"), (1, "1s"), (1.5, "1.5s"), (360, "6m0s"), (61.2, "1m1.2s"), (67_423, "18h43m43s")],
)
def test_durations_read_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
