"""Usage columns: every place that holds a measure has the columns that are defined once."""

from hypothesis import given
from hypothesis import strategies as st
from uplion.billing.v1.usage_event_pb2 import UsageEvent
from uplion.control.v1.request_pb2 import Attempt
from uplion.control.v1.usage_pb2 import Rates, UsageClass, UsageRow
from uplion.inference.v1.sampling_pb2 import TokenUsage

from ledger import prices
from ledger.usage_columns import DURATIONS, TOKEN_CLASSES, TOKEN_COLUMNS, TOTAL_TOKENS, disjoint, total

NONE_LATER = [0] * (len(TOKEN_CLASSES) - 5)
COUNTS = st.lists(st.integers(0, 1000), min_size=len(TOKEN_CLASSES), max_size=len(TOKEN_CLASSES))


def fields(message):
    return {field.name for field in message.DESCRIPTOR.fields}


def test_messages_have_a_field_for_each_measure():
    assert fields(TokenUsage) == set(TOKEN_COLUMNS)
    assert fields(UsageRow) >= set(TOKEN_COLUMNS)
    assert fields(Rates) == set(prices.RATES)
    names = {f"USAGE_CLASS_{each.name.upper()}" for each in TOKEN_CLASSES}
    assert set(UsageClass.keys()) - names == {"USAGE_CLASS_UNSPECIFIED", "USAGE_CLASS_COMPUTE", "USAGE_CLASS_REQUEST"}
    for message in (UsageEvent, Attempt):
        assert fields(message) >= {each.field for each in DURATIONS}


def test_all_tokens_are_input_and_output():
    assert TOTAL_TOKENS == "input_tokens + output_tokens"
    assert total((100, 40, 20, 10, 3, *NONE_LATER)) == 110


def test_classes_apart_hold_each_token_once():
    assert disjoint((100, 40, 20, 10, 3, *NONE_LATER)) == [40, 40, 20, 7, 3, *NONE_LATER]


def test_a_part_is_never_more_than_its_whole_has_left():
    assert disjoint((100, 70, 50, 10, 30, *NONE_LATER)) == [0, 70, 30, 0, 10, *NONE_LATER]


@given(COUNTS)
def test_no_token_is_lost_or_negative(counts):
    apart = disjoint(counts)
    assert sum(apart) == total(counts)
    assert min(apart) >= 0
