import re

from hypothesis import given
from hypothesis import strategies as st

from common import names


@given(st.text(min_size=1, max_size=100), st.text(min_size=1, max_size=100))
def test_a_token_is_one_subject_token_and_no_two_names_share_one(one: str, other: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", names.token(one))
    assert (names.token(one) == names.token(other)) == (one == other)


def test_plain_names_stay_readable() -> None:
    assert names.task_subject("ai-model-sample") == "tasks.ai-model-sample.default"
    assert names.task_subject("org/model.v1").count(".") == 2


def test_everything_of_an_account_lies_in_one_hash_slot() -> None:
    made = [
        names.reserved_key("a"),
        names.used_key("a", "life"),
        names.used_key("a", "2026-11"),
        names.reservations_key("a"),
        names.reservation_amounts_key("a"),
        names.rate_key("a", "n", "a"),
        names.rate_key("a", "t", "a"),
        names.rate_key("a", "n", "k:x"),
        names.rate_key("a", "n", "k:x", "model"),
    ]
    assert len(set(made)) == len(made)
    assert {re.match(r"\{(.*?)\}", key)[1] for key in made} == {"a"}  # type: ignore[index]
