"""Page sizes and page tokens of the lists."""

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from control.requests.fields import invalid

if TYPE_CHECKING:
    import asyncpg

_PAGE_DEFAULT = 100
_PAGE_MOST = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def page_size(value: int) -> int:
    """How many to return; a larger number is cut to the maximum, as AIP-158 says."""
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
    if "\0" in value or encode_token(value) != token:
        raise ValueError("not ours")
    return value
