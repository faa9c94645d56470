"""The Lua scripts, each with the tables that it answers from written before it."""

import json
from collections.abc import Iterable
from importlib.resources import files

from common.error_dialects import error_body
from common.errors import Reason, UplionError
from common.operations import Dialect, Operation
from credentials import headers
from edge import replies
from edge.settings import EdgeSettings

_NOT_WHOLE = "The request is not one whole message."
_REFUSALS = ("NO_KEY", "NOT_BEARER", "TWO_KEYS", "NOT_VALID")
_MESSAGE, _REQUEST_ID = "$MESSAGE", "$REQUEST_ID"  # placeholders in the bodies; front.lua knows them by these names

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
    """The script that sees a request first and an answer last."""
    dialects = replies.http_dialects(operations)
    routes = {"admin": Dialect.OPENAI.value, **{dialect.value: dialect.value for dialect in dialects}}
    tables = {
        "ERRORS": _errors(dialects),
        "REFUSALS": _refusals(dialects),
        "DIALECTS": _table({route: _text(dialect) for route, dialect in routes.items()}),
        "CREDENTIAL_HEADERS": "{" + ", ".join(_text(name) for name in headers.HEADERS) + "}",
        "MOST_TOKEN_CHARACTERS": str(headers.MOST_TOKEN_CHARACTERS),
        "TOKENS": "true" if settings.tokens else "false",
    }
    return _script("front.lua", tables)


def frames() -> str:
    """The script that native calls must pass."""
    return _script("frames.lua", {"REFUSAL": _refusal(UplionError(Reason.INVALID_REQUEST, _NOT_WHOLE))})


def _script(name: str, tables: dict[str, str]) -> str:
    head = "".join(f"local {table} = {value}\n" for table, value in tables.items())
    return head + files("edge").joinpath("lua", name).read_text()


def _errors(dialects: Iterable[Dialect]) -> str:
    """By gRPC code, the answer to an HTTP client."""
    rows = []
    for code, reason in _REASON_BY_GRPC_CODE.items():
        answer = reason.value
        row = {
            "status": _text(str(answer.http_status)),
            "retry": _text("true" if answer.retry else "false"),
            "message": _text(replies.message(answer.code)),
            "body": _bodies(UplionError(reason, _MESSAGE), dialects),
        }
        rows.append(f"[{code}] = {_table(row)}")
    return "{" + ", ".join(rows) + "}"


def _refusals(dialects: Iterable[Dialect]) -> str:
    """By what is wrong with a credential: what authz would answer, to HTTP and to gRPC."""
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
    """A Lua string. JSON's is one as long as nothing in it needs \\u."""
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{value!r} has no simple form in Lua")
    return json.dumps(value)
