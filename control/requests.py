"""What every admin request has in common: a caller, fields to check, pages to turn."""

import binascii
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp
from uplion.control.v1.account_pb2 import ResourceState

from common.errors import Reason, UplionError
from control import permissions
from control.permissions import Caller

if TYPE_CHECKING:
    import asyncpg

_PAGE_DEFAULT = 100
_PAGE_MOST = 1000
_REQUEST_ID_CHARACTERS = 100
STATES = {
    "active": ResourceState.RESOURCE_STATE_ACTIVE,
    "suspended": ResourceState.RESOURCE_STATE_SUSPENDED,
    "revoked": ResourceState.RESOURCE_STATE_REVOKED,
}
_ID_CHARACTERS = 100
_LABELS_MOST = 50
_LABEL_NAME_CHARACTERS = 63
_LABEL_CHARACTERS = 255
_AMOUNT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def caller(context: "grpc.aio.ServicerContext[Any, Any]") -> Caller:
    """Who calls, and whose objects exist for it; the method's scope was checked before."""
    return permissions.caller((name, value) for name, value in context.invocation_metadata() or ())


def invalid(param: str, message: str) -> UplionError:
    """The request is wrong in this field."""
    return UplionError(Reason.INVALID_REQUEST, f"{param}: {message}", param=param)


def text(param: str, value: str, *, least: int = 0, most: int) -> str:
    """A text for people, or an id: of that length, without control characters."""
    if not least <= len(value) <= most:
        wanted = f"{least} to {most}" if least else f"at most {most}"
        raise invalid(param, f"must have {wanted} characters, has {len(value)}")
    if any(character < " " or character == "\x7f" for character in value):
        raise invalid(param, "must not hold control characters")
    return value


def identifier(value: str) -> str:
    """Which object a request is about."""
    return text("id", value, least=1, most=_ID_CHARACTERS)


def account(asked: str, who: Caller) -> str | None:
    """The account that a list or a new object is of; None for the operator who named none."""
    return who.account_filter(text("account", asked, most=_ID_CHARACTERS))


def request_id(value: str) -> str | None:
    """The idempotency key; None when the caller asks for no promise."""
    return text("request_id", value, most=_REQUEST_ID_CHARACTERS) or None


def state(value: ResourceState.ValueType) -> str:
    """The state as the database has it; only what can be undone is set this way."""
    if value == ResourceState.RESOURCE_STATE_ACTIVE:
        return "active"
    if value == ResourceState.RESOURCE_STATE_SUSPENDED:
        return "suspended"
    raise invalid("state", "must be active or suspended")


def moment(param: str, value: Timestamp) -> datetime:
    """A moment in UTC that the database can hold."""
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise invalid(param, "is no moment") from None


def amount(param: str, value: str) -> Decimal:
    """A price or a cost: a plain decimal that is not negative."""
    if not _AMOUNT.fullmatch(value):
        raise invalid(param, "must be a decimal such as 0.15, with at most 12 decimals")
    return Decimal(value)


def decimal_text(value: Decimal) -> str:
    """A decimal as the contract writes it: every digit, no exponent, no zeros at its end."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def labels(value: Mapping[str, str]) -> str:
    """Labels as the database has them, a JSON object."""
    if len(value) > _LABELS_MOST:
        raise invalid("labels", f"must be at most {_LABELS_MOST}")
    for name, content in value.items():
        text("labels", name, least=1, most=_LABEL_NAME_CHARACTERS)
        text("labels", content, most=_LABEL_CHARACTERS)
    return json.dumps(dict(value))


def page_size(value: int) -> int:
    """How many to return; more than the most is cut, as AIP-158 has it."""
    if value < 0:
        raise invalid("page_size", "must not be negative")
    return min(value, _PAGE_MOST) or _PAGE_DEFAULT


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page of a list by age ended."""

    create_time: datetime
    id: str


def read_position(token: str) -> Position | None:
    """From a page token; None is the start."""
    if not token:
        return None
    try:
        microseconds, _, identifier = _decode_token(token).partition(" ")
        return Position(_EPOCH + timedelta(microseconds=int(microseconds)), identifier)
    except (ValueError, OverflowError):
        raise invalid("page_token", "is not one that this list gave out") from None


def write_position(create_time: datetime, identifier: str) -> str:
    """The page token that continues after this one."""
    microseconds = (create_time - _EPOCH) // timedelta(microseconds=1)
    return encode_token(f"{microseconds} {identifier}")


def next_page(rows: "Sequence[asyncpg.Record]", size: int) -> str:
    """The token of the page after the first `size` of these rows; empty when there are no more."""
    return write_position(rows[size - 1]["create_time"], rows[size - 1]["id"]) if len(rows) > size else ""


def read_name(token: str) -> str:
    """From a page token of a list by name; empty is the start."""
    try:
        return _decode_token(token)
    except ValueError:
        raise invalid("page_token", "is not one that this list gave out") from None


def read_number(token: str) -> int | None:
    """From a page token of a list by number; None is the start."""
    text = read_name(token)
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise invalid("page_token", "is not one that this list gave out")
    return int(text)


def encode_token(value: str) -> str:
    """Opaque to clients, so that they do not build on what is inside."""
    return urlsafe_b64encode(value.encode()).rstrip(b"=").decode()


def _decode_token(token: str) -> str:
    try:
        value = urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    except binascii.Error as problem:
        raise ValueError("not base64") from problem
    if "\0" in value:
        raise ValueError("not ours")
    return value
