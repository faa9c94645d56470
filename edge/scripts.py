"""The Lua scripts with the tables they answer from."""

import json
from importlib.resources import files

from common.errors import Reason, UplionError, openai_body
from credentials import headers
from edge import replies
from edge.settings import EdgeSettings

_NOT_WHOLE = "The request is not one whole message."
_REFUSALS = ("NO_KEY", "NOT_BEARER", "TWO_KEYS", "NOT_VALID")

_REASON_BY_GRPC_CODE = {
    1: Reason.CANCELLED,
    3: Reason.INVALID_REQUEST,
    4: Reason.DEADLINE_EXCEEDED,
    5: Reason.NOT_FOUND,
    6: Reason.ALREADY_EXISTS,
    7: Reason.PERMISSION_DENIED,
    8: Reason.OVERLOADED,
    9: Reason.INVALID_REQUEST,
    11: Reason.INVALID_REQUEST,
    12: Reason.NOT_FOUND,
    13: Reason.INTERNAL,
    14: Reason.UNAVAILABLE,
    16: Reason.INVALID_API_KEY,
}


def front(settings: EdgeSettings) -> str:
    """What sees a request first and an answer last."""
    tables = {
        "ERRORS": _errors(),
        "REFUSALS": _refusals(),
        "CREDENTIAL_HEADERS": "{" + ", ".join(_text(name) for name in headers.HEADERS) + "}",
        "MOST_TOKEN_CHARACTERS": str(headers.MOST_TOKEN_CHARACTERS),
        "TOKENS": "true" if settings.tokens else "false",
    }
    return _script("front.lua", tables)


def frames() -> str:
    """What native calls must pass."""
    return _script("frames.lua", {"REFUSAL": _refusal(UplionError(Reason.INVALID_REQUEST, _NOT_WHOLE))})


def _script(name: str, tables: dict[str, str]) -> str:
    head = "".join(f"local {table} = {value}\n" for table, value in tables.items())
    return head + files("edge").joinpath(name).read_text()


def _errors() -> str:
    """By gRPC code, what an HTTP client is told."""
    rows = []
    for code, reason in _REASON_BY_GRPC_CODE.items():
        answer = reason.value
        row = _table(
            status=str(answer.http_status),
            type=answer.type,
            code=answer.code,
            retry="true" if answer.retry else "false",
            message=replies.message(answer.code),
        )
        rows.append(f"[{code}] = {row}")
    return "{" + ", ".join(rows) + "}"


def _refusals() -> str:
    """By what is wrong with a credential: what authz would answer, to HTTP and to gRPC."""
    rows = [f"{name} = {_refusal(headers.refused(getattr(headers, name)))}" for name in _REFUSALS]
    return "{" + ", ".join(rows) + "}"


def _refusal(error: UplionError) -> str:
    body = openai_body(error).decode()
    return _table(message=error.message, body=body, details=replies.status_details(error))


def _table(**fields: str) -> str:
    return "{" + ", ".join(f"{name} = {_text(value)}" for name, value in fields.items()) + "}"


def _text(value: str) -> str:
    """A Lua string. JSON's is one as long as nothing in it needs \\u."""
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{value!r} has no simple form in Lua")
    return json.dumps(value)
