"""JSON values as a proto message, by its descriptor: every error names the field by its path, `limits[0].amount`.

The form is proto JSON's (names in snake_case or camelCase, 64-bit integers as text or number), but for null, which is
refused: in a change it looks like "empty it" and would mean "leave it".
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sized
from functools import cache
from itertools import count
from typing import Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from control.http.json_text import Twice
from control.requests.fields import MOST_ELEMENTS, invalid, shortened, unknown

_MOST_NESTED: Final = 50  # of a Struct: objects and lists in each other
_MOST_VALUES: Final = 10_000  # of a Struct
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_RANGES: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
}
_MASK: Final = "google.protobuf.FieldMask"
_STRUCT: Final = "google.protobuf.Struct"
# Messages that are text in JSON: how each is read, and what to say of a text that cannot be.
_TEXTS: Mapping[str, tuple[Callable[[str], object], str]] = {
    "google.protobuf.Timestamp": (
        lambda text: Timestamp().FromJsonString(text),
        "must be a moment such as 2026-11-30T12:00:00Z",
    ),
    "google.protobuf.Duration": (lambda text: Duration().FromJsonString(text), "must be a duration such as 90s"),
    _MASK: (
        lambda text: FieldMask().FromJsonString(text),
        "must be names of fields, separated by commas",
    ),
}


def message(kind: Descriptor, value: Mapping[str, object]) -> Message:
    """A message of this kind; raises INVALID_REQUEST naming the first field that is wrong."""
    value = {name: _camel_case(kind, name, each) for name, each in value.items()}
    _check_message(kind, value, "")
    made: Message = GetMessageClass(kind)()
    try:
        json_format.ParseDict(value, made)
    except json_format.ParseError as problem:
        raise invalid("body", f"is no {kind.name}: {shortened(str(problem))}") from None
    return made


@cache
def names(kind: Descriptor) -> Mapping[str, FieldDescriptor]:
    """The fields of a message by each name that JSON may call them."""
    return {name: field for field in kind.fields for name in (field.json_name, field.name)}


def _camel_case(kind: Descriptor, name: str, value: object) -> object:
    """An update mask as proto JSON has it: fields go by either name everywhere else, so they do in a mask."""
    field = names(kind).get(name)
    if field is None or field.message_type is None or field.message_type.full_name != _MASK or type(value) is not str:
        return value
    return re.sub("_([a-z])", lambda found: found[1].upper(), value)


def _check_message(kind: Descriptor, value: Mapping[str, object], path: str) -> None:
    known = names(kind)
    seen: dict[str, str] = {}
    for name, each in value.items():
        where = f"{path}.{name}" if path else name
        field = known.get(name)
        if field is None:
            raise unknown(where, name, [field.name for field in kind.fields], "field")
        if isinstance(each, Twice) or field.name in seen:
            raise invalid(where, "is given twice")
        seen[field.name] = name
        _check_field(field, each, where)


def _check_field(field: FieldDescriptor, value: object, path: str) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        content = _object(value, path)
        _check_count(content, path)
        for name, each in content.items():
            where = f"{path}.{name}"
            if isinstance(each, Twice):
                raise invalid(where, "is given twice")
            _check_text(name, where)
            _check_value(kind.fields_by_name["value"], each, where)
    elif field.is_repeated:
        if not isinstance(value, list):
            raise invalid(path, f"must be a list, is {_kind(value)}")
        _check_count(value, path)
        for index, each in enumerate(value):
            _check_value(field, each, f"{path}[{index}]")
    else:
        _check_value(field, value, path)


def _check_count(elements: Sized, path: str) -> None:
    if len(elements) > MOST_ELEMENTS:
        raise invalid(path, f"must be at most {MOST_ELEMENTS}, are {len(elements)}")


def _check_value(field: FieldDescriptor, value: object, path: str) -> None:
    kind = field.message_type
    if value is None:
        raise invalid(path, "must not be null; leave it out to leave it unset")
    if kind is not None:
        if kind.full_name == _STRUCT:
            _check_struct(_object(value, path), path, 1, count())
        elif kind.full_name in _TEXTS:
            _check_known(value, path, *_TEXTS[kind.full_name])
        else:
            _check_message(kind, _object(value, path), path)
    elif field.enum_type is not None:
        _check_enum(field.enum_type, value, path)
    elif field.type in _RANGES:
        _check_integer(value, path, *_RANGES[field.type])
    elif field.type == FieldDescriptor.TYPE_STRING:
        _check_text(value, path)
    elif field.type == FieldDescriptor.TYPE_BOOL and not isinstance(value, bool):
        raise invalid(path, f"must be true or false, is {_kind(value)}")


def _check_known(value: object, path: str, read: Callable[[str], object], wanted: str) -> None:
    _check_text(value, path)
    try:
        read(str(value))
    except (ValueError, OverflowError):
        raise invalid(path, wanted) from None


def _check_enum(kind: EnumDescriptor, value: object, path: str) -> None:
    known = [each.name for each in kind.values]
    if isinstance(value, str):
        if value not in known:
            raise unknown(path, value, known, "value")
    elif type(value) is not int or value not in kind.values_by_number:
        raise invalid(path, f"must be one of {', '.join(known)}")


def _check_integer(value: object, path: str, least: int, most: int) -> None:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise invalid(path, f"must be a whole number, is {_kind(value)}")
    if not least <= value <= most:
        raise invalid(path, f"must be from {least} to {most}")


def _check_text(value: object, path: str) -> None:
    if not isinstance(value, str):
        raise invalid(path, f"must be text, is {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(path, "is no Unicode text: it holds half of a surrogate pair") from None


def _check_struct(value: object, path: str, depth: int, counted: Iterator[int]) -> None:
    """What a manifest may hold; its own checks come later, and are about its fields."""
    if depth > _MOST_NESTED:
        raise invalid(path, "is nested too deeply")
    if next(counted) > _MOST_VALUES:
        raise invalid(path, f"is too much: the whole may hold {_MOST_VALUES} values")
    if isinstance(value, dict):
        for name, each in value.items():
            _check_text(name, path)
            _check_struct(each, f"{path}.{name}", depth + 1, counted)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            _check_struct(each, f"{path}[{index}]", depth + 1, counted)
    elif isinstance(value, Twice):
        raise invalid(path, "is given twice")
    elif isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, (int, float)):
        try:
            finite = math.isfinite(value)
        except OverflowError:
            finite = False
        if not finite:
            raise invalid(path, "must be a finite number")


def _object(value: object, path: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise invalid(path, f"must be an object, is {_kind(value)}")
    return value


def _kind(value: object) -> str:
    """What a value is, in words of JSON."""
    return _KINDS.get(type(value), "null")


_KINDS = {
    bool: "true or false",
    dict: "an object",
    float: "a number",
    int: "a number",
    list: "a list",
    str: "text",
}
