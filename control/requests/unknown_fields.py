"""Refuses a message that holds fields its contract does not have: what a caller meant by them would be lost."""

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from common.errors import Reason, UplionError
from control.requests.fields import MOST_ELEMENTS, invalid


def refuse(message: Message, path: str = "") -> None:
    """Raises INVALID_REQUEST for the first one; a field that is sent with another wire type is one too."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        kind, number = message.DESCRIPTOR, unknown[0].field_number
        known = kind.fields_by_number.get(number)
        if known is not None:
            where = f"{path}.{known.name}" if path else known.name
            raise invalid(where, "is sent with another type than it has")
        raise UplionError(
            Reason.INVALID_REQUEST,
            f"{path or kind.name}: there is no field {number} in {kind.name}",
            param=path or None,
        )
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        where = f"{path}.{field.name}" if path else field.name
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for name, each in value.items():
                    refuse(each, f"{where}.{name}")
        elif field.is_repeated:
            if len(value) > MOST_ELEMENTS and field.message_type.full_name != "google.protobuf.Value":
                raise invalid(where, f"must be at most {MOST_ELEMENTS}, are {len(value)}")
            for index, each in enumerate(value):
                refuse(each, f"{where}[{index}]")
        else:
            refuse(value, where)
