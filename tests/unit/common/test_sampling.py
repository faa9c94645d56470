"""Sampling fields: what the contract has is declared, and what a message says comes out as engines read it."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from uplion.inference.v1 import sampling_pb2

from common import sampling
from common.sampling import Sampling


def test_every_field_of_the_contract_is_declared_once() -> None:
    assert {field.name for field in sampling_pb2.Sampling.DESCRIPTOR.fields} == set(Sampling.__struct_fields__)


def test_what_a_message_leaves_unset_is_the_declared_default() -> None:
    assert sampling.from_message(sampling_pb2.Sampling()) == Sampling()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_output_tokens": st.integers(1, 1 << 20),
            "temperature": st.floats(0, 2, width=32),
            "top_p": st.floats(0.5, 1, width=32),
            "top_k": st.integers(0, 1 << 20),
            "seed": st.integers(-(1 << 63), (1 << 63) - 1),
            "stop": st.lists(st.text(min_size=1, max_size=5), max_size=4).map(tuple),
            "choices": st.integers(1, 8),
            "frequency_penalty": st.floats(-2, 2, width=32),
            "presence_penalty": st.floats(-2, 2, width=32),
        },
    )
)
def test_what_a_message_says_comes_out_as_it_was_put_in(values: dict[str, Any]) -> None:
    found = sampling.from_message(sampling_pb2.Sampling(**values))
    assert found == Sampling(**values)
    assert found == msgspec.convert(values, Sampling)
    assert {name for name, value in values.items() if value != getattr(Sampling(), name)} == found.changed().keys()
