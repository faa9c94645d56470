"""Answers of the HTTP dialects as google.api.HttpBody, which the edge's transcoder turns into bodies, byte for byte."""

from typing import Final

from common import names
from common.error_dialects import error_body, error_headers
from common.errors import UplionError
from common.operations import Operation
from router.surfaces.base import Context, write

CONTENT_JSON: Final = "application/json"
CONTENT_STREAM: Final = "text/event-stream"


def http_body(data: bytes, content_type: str = "") -> bytes:
    """google.api.HttpBody on the wire. In a stream only the first message needs the type: Envoy takes it from there."""
    head = b"\x0a" + _varint(len(content_type)) + content_type.encode() if content_type else b""
    return b"".join((head, b"\x12", _varint(len(data)), data))


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


async def answer_json(context: Context, body: bytes) -> None:
    """A whole answer with status 200."""
    await write(context, http_body(body, CONTENT_JSON))


async def flush(context: Context) -> None:
    """Returns once the edge's socket has what was written: gRPC reports a message as written when it has framed it, and
    frames another one (an empty one, of which the edge makes nothing) only after that.
    """
    await write(context, b"")


async def answer_error(
    context: Context, operation: Operation, error: UplionError, request_id: str = "", *, retry: bool = True
) -> None:
    """An answer that is not 200: the edge makes the header the HTTP status; the body is in the operation's dialect.

    `retry` False says that no retry may help, whatever the reason.
    """
    headers = {names.HEADER_STATUS: str(error.reason.http_status), **error_headers(error)}
    if not retry:
        headers["x-should-retry"] = "false"
    await context.send_initial_metadata(tuple(headers.items()))
    await write(context, http_body(error_body(operation.dialect, error, request_id), CONTENT_JSON))
