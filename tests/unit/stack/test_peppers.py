"""The peppers of a local stack: one is added in front, and one that is no longer needed is dropped."""

import pytest

from common.settings import SettingsError
from credentials.shared_secrets import read
from stack import peppers
from stack.errors import StackError
from stack.state import State


@pytest.fixture
def state(tmp_path) -> State:
    made = State(tmp_path)
    made.create()
    return made


def test_the_newest_is_the_one_for_new_keys_and_the_others_stay(state):
    (first,) = peppers.ensure(state)
    assert peppers.ensure(state) == (first,)
    assert (peppers.add(state), peppers.add(state)) == ("2", "3")
    third, second, kept = peppers.ensure(state)
    assert (third[:2], second[:2], kept) == ("3:", "2:", first)
    assert len({pepper.partition(":")[2] for pepper in (third, second, first)}) == 3
    peppers.drop(state, "2")
    assert peppers.ensure(state) == (third, first)
    assert list(read(peppers.ensure(state), "X")) == ["3", "1"]


def test_a_state_from_before_keeps_its_pepper(state):
    state.write("secrets.json", {"pepper": "of old", "nats": "n"})
    assert peppers.ensure(state) == ("1:of old",)
    assert state.secrets() == {"nats": "n", "peppers": "1:of old"}


def test_what_makes_no_sense_is_not_dropped(state):
    peppers.ensure(state)
    for wrong in ("1", "2"):
        with pytest.raises(StackError):
            peppers.drop(state, wrong)


@pytest.mark.parametrize("texts", [(), ("1",), ("1:",), (":secret",), ("1:secret", "1:secret")])
def test_peppers_that_cannot_be_read_are_refused_without_telling_a_secret(texts):
    with pytest.raises(SettingsError) as caught:
        read(texts, "UPLION_PEPPERS")
    assert "UPLION_PEPPERS" in str(caught.value)
    assert "secret>" in str(caught.value) or "secret" not in str(caught.value)
