import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credentials import api_keys


def test_a_generated_key_reads_back_in_parts() -> None:
    key = api_keys.generate("live")
    assert api_keys.parse(key.text) == key
    assert re.fullmatch(api_keys.SCANNER_PATTERN, key.text)
    assert re.fullmatch(api_keys.SCANNER_PATTERN, api_keys.TEST_KEY)
    assert key.secret not in repr(key)


@given(st.integers(0, len(api_keys.TEST_KEY) - 1), st.characters(codec="ascii"))
def test_one_wrong_character_is_refused(position: int, character: str) -> None:
    text = api_keys.generate().text
    wrong = text[:position] + character + text[position + 1 :]
    if wrong != text:
        with pytest.raises(api_keys.MalformedKeyError):
            api_keys.parse(wrong)


@given(st.text())
def test_no_text_is_taken_for_a_key(text: str) -> None:
    with pytest.raises(api_keys.MalformedKeyError):
        api_keys.parse(text)


def test_the_digest_depends_on_secret_and_pepper() -> None:
    assert api_keys.digest("a", b"p") == api_keys.digest("a", b"p")
    assert len({api_keys.digest("a", b"p"), api_keys.digest("b", b"p"), api_keys.digest("a", b"q")}) == 3
