"""The request of an admin method as an HTTP client made it: fields from path, query and body, by `google.api.http`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import parse_qsl, unquote

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from common.admin_api import Route
from common.errors import Reason, UplionError
from control.http import json_message, json_text
from control.requests.fields import invalid, shortened, unknown

# Envoy's transcoder moves the client's path there; a client's own header of this name does not pass the edge.
_PATH: Final = "x-envoy-original-path"
_TIMESTAMP: Final = "google.protobuf.Timestamp"
_IN_A_QUERY = frozenset({_TIMESTAMP, "google.protobuf.Duration", "google.protobuf.FieldMask"})
_MOST_PARAMETERS = 200


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What the edge received."""

    path: str
    query: str

    @classmethod
    def of(cls, metadata: Mapping[str, str | bytes]) -> Self | None:
        """None: a gRPC client called."""
        target = metadata.get(_PATH)
        if target is None:
            return None
        path, _, query = str(target).partition("?")
        return cls(path, query)

    def message(self, route: Route, data: bytes) -> Message:
        """The method's request; raises INVALID_REQUEST naming what is wrong. `data` is the edge's HttpBody."""
        kind = route.method.input_type
        try:
            sent = HttpBody.FromString(data)
        except DecodeError:
            raise UplionError(Reason.INVALID_REQUEST, "The request is not a valid message.") from None
        in_path = self._in_path(route)
        values = self._in_query(route, kind)
        if route.takes_body:
            values = _in_body(sent)
        elif sent.data:
            raise UplionError(Reason.INVALID_REQUEST, f"{route.verb} takes no body; its parameters are in the query.")
        made = json_message.message(kind, values)
        for name, text in in_path.items():
            if getattr(made, name) not in ("", text):
                raise invalid(name, f"is {text!r} in the path, and something else here")
            setattr(made, name, text)
        return made

    def _in_path(self, route: Route) -> dict[str, str]:
        match = re.fullmatch(route.pattern, self.path)
        if match is None:
            raise UplionError(Reason.NOT_FOUND, "There is nothing at this URL.")
        found = {}
        for name, text in zip(route.variables, match.groups(), strict=True):
            try:
                found[name] = unquote(text, errors="strict")
            except UnicodeDecodeError:
                raise invalid(name, "is not UTF-8") from None
        return found

    def _in_query(self, route: Route, kind: Descriptor) -> dict[str, object]:
        try:
            pairs = parse_qsl(self.query, keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS)
        except UnicodeDecodeError:
            raise UplionError(Reason.INVALID_REQUEST, "The query is not UTF-8.") from None
        except ValueError:
            raise UplionError(Reason.INVALID_REQUEST, f"The query has over {_MOST_PARAMETERS} parameters.") from None
        known = {
            name: field
            for name, field in json_message.names(kind).items()
            if not route.takes_body and field.name not in route.variables and _fits_a_query(field)
        }
        values: dict[str, object] = {}
        seen: set[str] = set()
        for name, text in pairs:
            field = known.get(name)
            if field is None:
                raise unknown(name, name, dict.fromkeys(each.name for each in known.values()), "query parameter")
            value = _value(field, text)
            if field.is_repeated:
                many = values.setdefault(field.name, [])
                assert isinstance(many, list)
                many.append(value)
            elif field.name in seen:
                raise invalid(name, "is given twice")
            else:
                values[name] = value
            seen.add(field.name)
        return values


def _in_body(sent: HttpBody) -> dict[str, object]:
    """Nothing at all is an empty object."""
    if not sent.data.strip():
        return {}
    media = sent.content_type.partition(";")[0].strip().lower()
    if media not in ("", json_text.CONTENT_JSON):
        raise invalid("content-type", f"must be {json_text.CONTENT_JSON}, is {shortened(media)}")
    values = json_text.read(sent.data)
    if not isinstance(values, dict):
        raise UplionError(Reason.INVALID_REQUEST, "The body must be a JSON object.")
    return values


def _fits_a_query(field: FieldDescriptor) -> bool:
    return field.message_type is None or field.message_type.full_name in _IN_A_QUERY


def _value(field: FieldDescriptor, text: str) -> object:
    """The text of a parameter as the JSON value of its field."""
    if field.type == FieldDescriptor.TYPE_BOOL:
        return {"true": True, "false": False}.get(text, text)
    if field.enum_type is not None and re.fullmatch("[0-9]{1,9}", text):
        return int(text)
    if field.message_type is not None and field.message_type.full_name == _TIMESTAMP:
        return text.replace(" ", "+")  # of an offset: a plus that was not escaped is a space in a query
    return text
