"""Stop texts across token borders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.engines.stopping import StopScanner


def scan(stops, tokens):
    scanner = StopScanner(tuple(stops))
    text = ""
    ids: list[int] = []
    for number, token in enumerate(tokens):
        ready, done = scanner.push(token, [number])
        assert len("".join(tokens[: number + 1])) >= len(text + ready)
        text, ids = text + ready, ids + done
        if scanner.stopped:
            return text, ids, True
    ready, done = scanner.flush()
    return text + ready, ids + done, False


@pytest.mark.parametrize(
    ("stops", "tokens", "text"),
    [
        (["END"], ["a", "E", "N", "D", "b"], "a"),
        (["END"], ["aEN", "Db"], "a"),
        (["END"], ["aE", "EN", "x"], "aEENx"),
        (["b", "ab"], ["a", "b"], ""),
        (["\n\n"], ["one\n", "two\n", "\n"], "one\ntwo"),
        (["aab"], ["a", "a", "a", "b"], "a"),
    ],
)
def test_text_ends_where_the_stop_text_begins(stops, tokens, text):
    assert scan(stops, tokens)[0] == text


def test_what_is_delivered_is_the_text_of_the_tokens_delivered():
    tokens = ["Hel", "lo E", "N", "o END"]
    scanner = StopScanner(("END",))
    delivered, ids = scanner.push(tokens[0], [0])
    assert (delivered, ids) == ("Hel", [0])
    delivered, ids = scanner.push(tokens[1], [1])
    assert (delivered, ids) == ("", []), "a whole token waits, not a part of it"
    assert scanner.push(tokens[2], [2]) == ("", [])
    assert scanner.push(tokens[3], [3]) == ("lo ENo ", [1, 2, 3])


@given(st.lists(st.text("abc", max_size=3), max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=4))
def test_it_agrees_with_searching_the_whole_text(tokens, stops):
    whole = "".join(tokens)
    text, ids, stopped = scan(stops, tokens)
    assert stopped == any(stop in whole for stop in stops)
    if not stopped:
        assert text == whole
        assert ids == list(range(len(tokens)))
    else:
        assert not any(stop in text for stop in stops)
        assert whole.startswith(text)
