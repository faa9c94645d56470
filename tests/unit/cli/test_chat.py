"""Reading a streamed answer."""

import json
from typing import Any

import pytest

from cli.chat import Answer, _complaint, _pieces
from cli.output import CommandError


def chunk(content: str | None = None, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {} if content is None else {"content": content}, "finish_reason": finish}]}


def test_pieces_add_up() -> None:
    answer = Answer()
    stream = [chunk("Hel"), chunk("lo"), chunk(finish="stop"), {"choices": [], "usage": {"completion_tokens": 2}}]
    assert [piece for part in stream for piece in _pieces(part, answer)] == ["Hel", "lo"]
    assert (answer.text, answer.finish_reason, answer.usage) == ("Hello", "stop", {"completion_tokens": 2})


def test_an_error_in_the_stream_is_raised() -> None:
    with pytest.raises(CommandError, match="the worker was lost"):
        list(_pieces({"error": {"message": "the worker was lost"}}, Answer()))


def test_refusals_are_said_in_their_own_words() -> None:
    assert _complaint(401, json.dumps({"error": {"message": "Incorrect API key."}}).encode()) == "Incorrect API key."
    assert _complaint(502, b"<html>") == "HTTP 502: <html>"
