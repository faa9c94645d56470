"""JSON Schemas of proto messages, in the JSON that the edge's transcoder writes.

Names are the proto's own (snake_case); 64-bit integers are strings; enums are their values' names. A field without
presence is always there, also with its default; one with presence is left out when it is unset.
"""

from collections.abc import Collection, Mapping
from typing import TypeAlias

from google.api.field_behavior_pb2 import REQUIRED, field_behavior
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

Json: TypeAlias = "Mapping[str, Json] | Collection[Json] | str | int | float | bool | None"
Schema: TypeAlias = dict[str, Json]

_SCALARS: dict[int, Schema] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_INT64: {"type": "string", "format": "int64", "pattern": "^-?[0-9]+$"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "format": "uint32", "minimum": 0},
    FieldDescriptor.TYPE_UINT64: {"type": "string", "format": "uint64", "pattern": "^[0-9]+$"},
}
_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "google.protobuf.FieldMask": {"type": "string"},  # names of fields, comma separated
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
}


class Schemas:
    """Components for every message and enum that is named; by the last part of its name, which must be the only one."""

    def __init__(self, comments: Mapping[str, str]) -> None:
        self._comments = comments
        self._written: dict[str, str] = {}  # component -> full name
        self.components: dict[str, Schema] = {}

    def request(self, message: Descriptor, leave_out: Collection[str] = ()) -> Schema:
        """A reference to the component of a request's body, without the fields that its path holds."""
        return self._component(message, leave_out, written=False)

    def response(self, message: Descriptor) -> Schema:
        """A reference to the component of an answer; all that always stands in it is required."""
        return self._component(message, (), written=True)

    def field(self, field: FieldDescriptor, *, written: bool) -> Schema:
        """The schema of a field with its comment; `written`: in an answer."""
        schema = self._value(field, written=written)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            schema = {"type": "object", "additionalProperties": self._value(_map_value(field), written=written)}
        elif field.is_repeated:
            schema = {"type": "array", "items": schema}
        return schema | self._description(field.full_name)

    def _value(self, field: FieldDescriptor, *, written: bool) -> Schema:
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        message = field.message_type
        if message is None:
            return dict(_SCALARS[field.type])
        if message.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[message.full_name])
        if message.GetOptions().map_entry:
            return {}
        return self._component(message, (), written=written)

    def _component(self, message: Descriptor, leave_out: Collection[str], *, written: bool) -> Schema:
        """What requests hold too is one component for both, and nothing in it is required because answers have it."""
        name = self._name(message)
        if name not in self.components or (not written and "required" in self.components[name]):
            self.components[name] = {}  # a message may hold itself
            fields = [field for field in message.fields if field.name not in leave_out]
            required = [field.name for field in fields if is_required(field) or (written and not field.has_presence)]
            properties: Json = {field.name: self.field(field, written=written) for field in fields}
            self.components[name] = {
                "type": "object",
                **self._description(message.full_name),
                **({"properties": properties} if fields else {}),
                **({"required": required} if required else {}),
            }
        return {"$ref": f"#/components/schemas/{name}"}

    def _enum(self, enum: EnumDescriptor) -> Schema:
        name = self._name(enum)
        if name not in self.components:
            values = [value.name for value in enum.values]
            lines = [f"- `{value}`: {self._comments.get(f'{enum.full_name}.{value}', '')}" for value in values]
            text = "\n".join([self._comments.get(enum.full_name, ""), "", *lines])
            self.components[name] = {"type": "string", "description": text, "enum": values}
        return {"$ref": f"#/components/schemas/{name}"}

    def _name(self, descriptor: Descriptor | EnumDescriptor) -> str:
        name: str = descriptor.name
        if self._written.setdefault(name, descriptor.full_name) != descriptor.full_name:
            raise ValueError(f"{name} means {self._written[name]} and {descriptor.full_name}")
        return name

    def _description(self, full_name: str) -> Schema:
        text = self._comments.get(full_name)
        return {"description": text} if text else {}


def is_required(field: FieldDescriptor) -> bool:
    """Whether the contract says that a request is refused without it."""
    return REQUIRED in field.GetOptions().Extensions[field_behavior]


def _map_value(field: FieldDescriptor) -> FieldDescriptor:
    assert field.message_type is not None
    return field.message_type.fields_by_name["value"]
