"""The Lua scripts, each preceded by the tables that it reads."""

import json
from collections.abc import Iterable
from importlib.resources import files

from common.error_dialects import error_body
from common.errors import Reason, UplionError
from common.operations import Dialect, Operation
from credentials import headers
from edge import replies
from edge.settings import EdgeSettings

# Of a request, by front.lua. What authz adds fits into the services' limit as well (rpc/server.py).
MOST_HEADERS = 108  # a client's 100, and eight of Envoy's
MOST_HEADER_BYTES = 32 << 10
_NOT_WHOLE = "The request is not one whole message."
_REFUSALS = ("NO_KEY", "NOT_BEARER", "TWO_KEYS", "NOT_VALID")
_MESSAGE, _PARAM, _REQUEST_ID = "$MESSAGE", "$PARAM", "$REQUEST_ID"  # placeholders that front.lua fills in

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


def front(settings: EdgeSettings, operations: Iterable[Operation]) -> str:
    """The script that runs first on requests and last on answers."""
    dialects = replies.http_dialects(operations)
    routes = {"admin": Dialect.OPENAI.value, **{dialect.value: dialect.value for dialect in dialects}}
    tables = {
        "ERRORS": _errors(dialects),
        "REFUSALS": _refusals(dialects),
        "DIALECTS": _table({route: _text(dialect) for route, dialect in routes.items()}),
        "CREDENTIAL_HEADERS": "{" + ", ".join(_text(name) for name in headers.HEADERS) + "}",
        "SCHEME": _text(headers.SCHEME),
        "MOST_HEADERS": str(MOST_HEADERS),
        "MOST_HEADER_BYTES": str(MOST_HEADER_BYTES),
        "MOST_TOKEN_CHARACTERS": str(headers.MOST_TOKEN_CHARACTERS),
        "TOKENS": "true" if settings.tokens else "false",
    }
    return _script("front.lua", tables)


def frames() -> str:
    """The script that checks native calls."""
    return _script("frames.lua", {"REFUSAL": _refusal(UplionError(Reason.INVALID_REQUEST, _NOT_WHOLE))})


def _script(name: str, tables: dict[str, str]) -> str:
    head = "".join(f"local {table} = {value}\n" for table, value in tables.items())
    return head + files("edge").joinpath("lua", name).read_text()


def _errors(dialects: Iterable[Dialect]) -> str:
    """The answer to an HTTP client, by gRPC code."""
    rows = []
    for code, reason in _REASON_BY_GRPC_CODE.items():
        answer = reason.value
        row = {
            "status": _text(str(answer.http_status)),
            "retry": _text("true" if answer.retry else "false"),
            "message": _text(replies.message(answer.code)),
            "body": _bodies(UplionError(reason, _MESSAGE, param=_PARAM), dialects),
        }
        rows.append(f"[{code}] = {_table(row)}")
    return "{" + ", ".join(rows) + "}"


def _refusals(dialects: Iterable[Dialect]) -> str:
    """authz's answer to HTTP and to gRPC clients, by what is wrong with a credential."""
    errors = {name: headers.refused(getattr(headers, name)) for name in _REFUSALS}
    return _table({name: _refusal(error, dialects) for name, error in errors.items()})


def _refusal(error: UplionError, dialects: Iterable[Dialect] = ()) -> str:
    details = replies.status_details(error)
    return _table({"message": _text(error.message), "details": _text(details), "body": _bodies(error, dialects)})


def _bodies(error: UplionError, dialects: Iterable[Dialect]) -> str:
    return _table({dialect.value: _text(error_body(dialect, error, _REQUEST_ID).decode()) for dialect in dialects})


def _table(fields: dict[str, str]) -> str:
    return "{" + ", ".join(f"{name} = {value}" for name, value in fields.items()) + "}"


def _text(value: str) -> str:
    """A Lua string literal, which JSON's is unless it needs a \\u escape."""
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{value!r} has no simple form in Lua")
    return json.dumps(value)
