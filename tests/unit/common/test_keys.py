import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import keys


def test_a_generated_key_reads_back_in_parts() -> None:
    key = keys.generate("live")
    assert keys.parse(key.text) == key
    assert re.fullmatch(keys.SCANNER_PATTERN, key.text)
    assert re.fullmatch(keys.SCANNER_PATTERN, keys.TEST_KEY)
    assert key.secret not in repr(key)


@given(st.integers(0, len(keys.TEST_KEY) - 1), st.characters(codec="ascii"))
def test_one_wrong_character_is_refused(position: int, character: str) -> None:
    text = keys.generate().text
    wrong = text[:position] + character + text[position + 1 :]
    if wrong != text:
        with pytest.raises(keys.MalformedKeyError):
            keys.parse(wrong)


@given(st.text())
def test_no_text_is_taken_for_a_key(text: str) -> None:
    with pytest.raises(keys.MalformedKeyError):
        keys.parse(text)


def test_the_digest_depends_on_secret_and_pepper() -> None:
    assert keys.digest("a", b"p") == keys.digest("a", b"p")
    assert len({keys.digest("a", b"p"), keys.digest("b", b"p"), keys.digest("a", b"q")}) == 3
