"""Fields that many admin requests have, checked and as the database has them."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal

from google.protobuf.timestamp_pb2 import Timestamp
from uplion.control.v1.account_pb2 import ResourceState

from common.errors import Reason, UplionError
from control.requests.caller import Caller

MOST_ELEMENTS = 1000  # of any list in a request; what a field is for may allow fewer
_REQUEST_ID_CHARACTERS = 100
_SHOWN_CHARACTERS = 100
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


def invalid(param: str, message: str) -> UplionError:
    """INVALID_REQUEST for this field; a path that a caller made long is shortened."""
    param = shortened(param)
    return UplionError(Reason.INVALID_REQUEST, f"{param}: {message}", param=param)


def unknown(param: str, name: str, known: Iterable[str], what: str) -> UplionError:
    """INVALID_REQUEST for a name that is none of `known`, with the one that may be meant."""
    names = list(known)
    near = difflib.get_close_matches(name[:_SHOWN_CHARACTERS].lower(), names, 1) or difflib.get_close_matches(
        name[:_SHOWN_CHARACTERS].upper(), names, 1
    )
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}" if names else "it takes none"
    return invalid(param, f"there is no such {what}; {hint}")


def shortened(text: str) -> str:
    """A text of the caller's as an error may repeat it; JSON's half surrogate pairs are no text."""
    text = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return text.encode(errors="backslashreplace").decode()


def text(param: str, value: str, *, least: int = 0, most: int) -> str:
    """A name or an id of `least` to `most` characters, without control characters."""
    if not least <= len(value) <= most:
        wanted = f"{least} to {most}" if least else f"at most {most}"
        raise invalid(param, f"must have {wanted} characters, has {len(value)}")
    if any(character < " " or "\x7f" <= character <= "\x9f" for character in value):
        raise invalid(param, "must not hold control characters")
    return value


def identifier(value: str) -> str:
    """Which object a request is about."""
    return text("id", value, least=1, most=_ID_CHARACTERS)


def account(asked: str, who: Caller) -> str | None:
    """The account that a list or a new object is of; None for the operator who named none."""
    return who.account_filter(text("account", asked, most=_ID_CHARACTERS))


def request_id(value: str) -> str | None:
    """The idempotency key; None when the caller sent none."""
    return text("request_id", value, most=_REQUEST_ID_CHARACTERS) or None


def state(value: ResourceState.ValueType) -> str:
    """The state as the database has it; revoking has a method of its own."""
    if value == ResourceState.RESOURCE_STATE_ACTIVE:
        return "active"
    if value == ResourceState.RESOURCE_STATE_SUSPENDED:
        return "suspended"
    raise invalid("state", "must be active or suspended")


def moment(param: str, value: Timestamp) -> datetime:
    """A time in UTC that the database can hold."""
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
