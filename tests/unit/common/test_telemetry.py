"""Log lines of odd facts, and trace contexts of odd clients."""

import io
import json
import logging

import pytest

from common import telemetry


class _NoText:
    def __str__(self) -> str:
        raise ValueError("no text")


def _deep() -> list[object]:
    found: list[object] = []
    for _ in range(100_000):
        found = [found]
    return found


ODD = {
    "half a surrogate pair": "\ud83d",
    "bytes": b"\xff\0",
    "NaN": float("nan"),
    "a huge number": 10**5000,
    "no text": _NoText(),
    "100,000 lists deep": _deep(),
    "a key of another kind": {(1, 2): 3},
    "lines": "a\nb\r\n{",
}


@pytest.fixture
def lines(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdout", stream)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    telemetry.configure_logging("info")

    def read() -> list[dict[str, object]]:
        stream.flush()
        return [json.loads(line) for line in stream.buffer.getvalue().decode().splitlines()]

    yield read
    root.handlers, root.level = handlers, level


@pytest.mark.parametrize("kind", ODD)
def test_no_fact_ends_its_caller_or_breaks_the_log(lines, kind) -> None:
    logging.getLogger("odd").info("before")
    logging.getLogger("odd").info("event", extra={"fact": ODD[kind]})
    logging.getLogger("odd").info("after")
    assert [line["event"] for line in lines()] == ["before", "event", "after"]


GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("text", ["", "x", GOOD + "\r\nx: y", GOOD.upper(), "\xff" * 55, GOOD[:-1], "0" * 100_000])
def test_a_trace_context_that_is_none_is_left_out(text) -> None:
    assert telemetry.incoming({"traceparent": text}) == ""


def test_a_trace_context_is_carried_on() -> None:
    assert telemetry.incoming({"traceparent": GOOD}) == GOOD
