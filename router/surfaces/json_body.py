"""Strict JSON bodies: one object, bounded, then converted to a dialect's schema; what is wrong is named by its field.

Fields that a schema does not declare stay in the object and are let through, as clients send them freely; only their
number and depth are bounded.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Final, Generic, NoReturn, TypeVar

import msgspec
from msgspec import inspect

from common.errors import Reason, UplionError
from router.surfaces.requests import invalid

Body = dict[str, object]
SchemaT = TypeVar("SchemaT", bound=msgspec.Struct)

_MAX_DEPTH: Final = 64  # of values in fields that no schema declares; chat clients send a handful
_MAX_VALUES: Final = 100_000  # anywhere in a body: what it takes to walk them must stay well under 100 ms
_MANY_BYTES: Final = 1 << 18
_INT64: Final = 1 << 63

_HIDDEN_LETTER: Final = re.compile(rb"\\u00[4-7]")  # an ASCII letter as an escape, which no client writes
_PATH: Final = re.compile(r" - at `\$\.?(.*)`$")  # where in the body msgspec found a problem
_INDEX: Final = re.compile(r"\[\d+\]")
_EXPECTED: Final = re.compile(r"Expected `(\w+)[^`]*`, got ")
_TYPE_TEXTS: Final[Mapping[str, str]] = {
    "array": "must be an array",
    "bool": "must be a boolean",
    "float": "must be a number",
    "int": "must be an integer",
    "object": "must be an object",
    "str": "must be a string",
}

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"  # which a parser may ignore (RFC 8259, 8.1); the edge's does, once

_decode = msgspec.json.Decoder().decode


def json_object(data: bytes, once: Iterable[str]) -> Body:
    """One JSON object; msgspec refuses NaN, lone surrogates, bad UTF-8, trailing text and numbers out of range.

    A field in `once` may be given once: the edge read it too, and authz reserved by what it read.
    """
    data = data.removeprefix(_BYTE_ORDER_MARK)
    quoted = data.count(b'"') > _MAX_VALUES  # few in a large text, whose bytes are not worth looking at again and again
    if quoted and len(data) > _MANY_BYTES and data.count(b'":') - data.count(b'\\":') > _MAX_VALUES:
        raise UplionError(Reason.INVALID_REQUEST, f"The body holds more than {_MAX_VALUES} values.")
    try:
        body = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as problem:
        raise UplionError(Reason.INVALID_REQUEST, f"The body is not valid JSON: {_why(problem)}.") from None
    if not isinstance(body, dict):
        raise UplionError(Reason.INVALID_REQUEST, "The body must be a JSON object.")
    if _HIDDEN_LETTER.search(data) or _may_repeat(data, once, quoted=quoted):
        _check_once(data, once)
    return body


def _may_repeat(data: bytes, once: Iterable[str], *, quoted: bool) -> bool:
    """Whether one of the names stands in the body more than once. One search for them all is faster (1 ms for 3 MB,
    where each count takes 4), except where it has to stop at many quotes.
    """
    if quoted:
        return any(data.count(b'"%s"' % name.encode()) > 1 for name in once)
    found = _any_of(tuple(once)).findall(data)
    return len(found) > len(set(found))


@cache
def _any_of(names: tuple[str, ...]) -> re.Pattern[bytes]:
    return re.compile(b'"(?:%s)"' % b"|".join(re.escape(name.encode()) for name in names))


def _check_once(data: bytes, once: Iterable[str]) -> None:
    """Parses the body again, slowly, to see duplicates; the cheap check also finds the names in nested places."""
    pairs: list[tuple[str, object]] = []

    def remember(found: list[tuple[str, object]]) -> None:
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


def check_unknown(body: Body, known: Iterable[str]) -> None:
    """Bounds what no schema looks at: depth, and integers beyond 64 bits. The fields in `known` are not looked at."""
    level: list[object] = [value for name, value in body.items() if name not in known]
    for _ in range(_MAX_DEPTH):
        deeper: list[object] = []
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


class Schema(Generic[SchemaT]):
    """A msgspec Struct that objects are converted to, and how what does not fit is refused.

    A path in `texts` and `params` is one of msgspec's without the indices, as "messages[].role". `texts` says what is
    wrong there, where the type and the range alone do not; `params` names the field where the path is not its name,
    with `{}` for the path. `prefix` goes before every name.
    """

    def __init__(
        self,
        kind: type[SchemaT],
        texts: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        prefix: str = "",
    ) -> None:
        self._kind = kind
        self._ranges = dict(_ranges(inspect.type_info(kind)))
        self._texts = texts or {}
        self._params = params or {}
        self._prefix = prefix

    def convert(self, given: Mapping[str, object]) -> SchemaT:
        """The object as the schema has it, where null is as good as absent; raises INVALID_REQUEST with the field."""
        if None in given.values():
            given = {name: value for name, value in given.items() if value is not None}
        try:
            return msgspec.convert(given, self._kind)
        except msgspec.ValidationError as problem:
            self._refuse(str(problem))

    def _refuse(self, message: str) -> NoReturn:
        found = _PATH.search(message)
        path = found[1] if found else ""
        place = _INDEX.sub("[]", path)
        expected = _EXPECTED.match(message)
        text = self._texts.get(place)
        if text is None:
            text = self._ranges.get(place) if expected is None else _TYPE_TEXTS.get(expected[1])
        param = self._prefix + self._params.get(place, "{}").format(path)
        invalid(param, text or "has the wrong type")


def _ranges(kind: inspect.Type, path: str = "") -> Iterator[tuple[str, str]]:
    """The text for a number that is out of its range, by path."""
    if isinstance(kind, inspect.UnionType):
        for each in kind.types:
            yield from _ranges(each, path)
    elif isinstance(kind, inspect.StructType):
        for field in kind.fields:
            yield from _ranges(field.type, f"{path}.{field.encode_name}" if path else field.encode_name)
    elif isinstance(kind, inspect.ListType):
        yield from _ranges(kind.item_type, f"{path}[]")
    elif isinstance(kind, inspect.IntType | inspect.FloatType):
        yield path, _range(kind.ge, kind.gt, kind.le)


def _range(low: float | None, above: float | None, high: float | None) -> str:
    if high is None:
        return f"must be at least {low}"
    return f"must be from {low} to {high}" if above is None else f"must be greater than {above} and at most {high}"
