"""Strict JSON objects and their fields: whatever is wrong raises UplionError naming the field."""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

import msgspec

from common.errors import Reason, UplionError

Body = dict[str, Any]

_MAX_DEPTH: Final = 64  # of values inside fields we do not know; chat clients send a handful
_MAX_VALUES: Final = 100_000  # anywhere in a body: what it takes to walk them must stay well under 100 ms
_MANY_BYTES: Final = 1 << 18
_INT64: Final = 1 << 63

_HIDDEN_LETTER: Final = re.compile(rb"\\u00[4-7]")  # an ASCII letter as an escape, which no client writes

_decode = msgspec.json.Decoder().decode


def json_object(data: bytes, once: Iterable[str]) -> Body:
    """One JSON object; msgspec refuses NaN, lone surrogates, bad UTF-8, trailing text and numbers out of range.

    A field in `once` may be given once: the edge read it too, and authz reserved by what it read.
    """
    if len(data) > _MANY_BYTES and data.count(b'":') - data.count(b'\\":') > _MAX_VALUES:
        raise UplionError(Reason.INVALID_REQUEST, f"The body holds more than {_MAX_VALUES} values.")
    try:
        body = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as problem:
        raise UplionError(Reason.INVALID_REQUEST, f"The body is not valid JSON: {_why(problem)}.") from None
    if not isinstance(body, dict):
        raise UplionError(Reason.INVALID_REQUEST, "The body must be a JSON object.")
    if _HIDDEN_LETTER.search(data) or any(data.count(b'"%s"' % name.encode()) > 1 for name in once):
        _check_once(data, once)
    return body


def _check_once(data: bytes, once: Iterable[str]) -> None:
    """The slow way to see what a dict cannot show; the words of those fields may well be in nested places."""
    pairs: list[tuple[str, Any]] = []

    def remember(found: list[tuple[str, Any]]) -> None:
        nonlocal pairs
        pairs = found  # the outermost object is the last

    try:
        json.loads(data, object_pairs_hook=remember)
    except (ValueError, RecursionError):
        raise UplionError(Reason.INVALID_REQUEST, "The body is not valid JSON.") from None
    names = [name for name, _ in pairs]
    for name in once:
        if names.count(name) > 1:
            raise UplionError(Reason.INVALID_REQUEST, f"'{name}' is given more than once.", param=name)


def _why(problem: Exception) -> str:
    if isinstance(problem, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(problem, RecursionError):
        return "it is nested too deeply"
    return str(problem).removeprefix("JSON is malformed: ") or "it is malformed"


def check_unknown(body: Body) -> None:
    """Bounds what we do not look at: depth, and integers that no one can mean."""
    # `prompt` and `input` were looked at item by item.
    level: list[Any] = [value for name, value in body.items() if name not in ("prompt", "input", "model")]
    for _ in range(_MAX_DEPTH):
        deeper: list[Any] = []
        for value in level:
            if type(value) is dict:
                deeper += value.values()
            elif type(value) is list:
                deeper += value
            elif type(value) is int and not -_INT64 <= value < 2 * _INT64:
                raise UplionError(Reason.INVALID_REQUEST, "The body holds an integer beyond 64 bits.")
        if not deeper:
            return
        if len(deeper) > _MAX_VALUES:
            raise UplionError(Reason.INVALID_REQUEST, f"The body holds more than {_MAX_VALUES} values.")
        level = deeper
    raise UplionError(Reason.INVALID_REQUEST, f"The body is nested deeper than {_MAX_DEPTH} levels.")


def invalid(param: str, problem: str) -> NoReturn:
    raise UplionError(Reason.INVALID_REQUEST, f"'{param}' {problem}.", param=param)


def unsupported(param: str, problem: str = "is not supported") -> NoReturn:
    raise UplionError(Reason.UNSUPPORTED_PARAMETER, f"'{param}' {problem}.", param=param)


def text(body: Body, name: str) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        invalid(name, "must be a string")
    return value


def flag(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        invalid(name, "must be a boolean")
    return value


def integer(body: Body, name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int:
        invalid(name, "must be an integer")
    if not low <= value <= high:
        invalid(name, f"must be from {low} to {high}")
    return value


def number(body: Body, name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not float and type(value) is not int:
        invalid(name, "must be a number")
    if not low <= value <= high:
        invalid(name, f"must be from {low:g} to {high:g}")
    return float(value)


def known(body: Body, name: str, good: Callable[[Any], bool]) -> None:
    """A field that is taken but changes nothing here: only its type is checked."""
    value = body.get(name)
    if value is not None and not good(value):
        invalid(name, "has the wrong type")
