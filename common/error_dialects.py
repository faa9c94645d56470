"""Errors as HTTP clients of each dialect read them: one writer for each, all from the table in `common.errors`.

gRPC's form is `common.errors.grpc_status`, which our own services speak too.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from common.errors import UplionError
from common.operations import Dialect


@dataclass(frozen=True, slots=True)
class HttpError:
    """What an HTTP client may learn of an error, in no dialect yet."""

    status: int
    type: str  # OpenAI's word for the class of the error
    code: str
    message: str
    param: str | None = None

    @classmethod
    def of(cls, error: UplionError) -> Self:
        answer = error.reason.value
        return cls(answer.http_status, answer.type, answer.code, error.message, error.param)


def openai_object(error: HttpError, request_id: str) -> dict[str, object]:
    """OpenAI's error object: message, type, param, code. The request id is in a header only."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def anthropic_object(error: HttpError, request_id: str) -> dict[str, object]:
    """Anthropic's error object; it has no code, so that the type alone says what a client can do about it."""
    other = "api_error" if error.status >= 500 else "invalid_request_error"
    inner = {"type": _ANTHROPIC_TYPES.get(error.status, other), "message": error.message}
    return {"type": "error", "error": inner, "request_id": request_id or None}


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

# The dialects that HTTP clients speak.
OBJECTS: Mapping[Dialect, Callable[[HttpError, str], dict[str, object]]] = {
    Dialect.OPENAI: openai_object,
    Dialect.ANTHROPIC: anthropic_object,
}


def error_body(dialect: Dialect, error: UplionError, request_id: str) -> bytes:
    """The JSON body of an answer that is not 200."""
    found = OBJECTS[dialect](HttpError.of(error), request_id)
    return json.dumps(found, ensure_ascii=False).encode("utf-8", "replace")


def error_headers(error: UplionError) -> dict[str, str]:
    """What the SDKs of all dialects read to decide on a retry."""
    return retry_headers(retry=error.reason.value.retry, after_seconds=error.retry_after_seconds)


def retry_headers(*, retry: bool, after_seconds: float | None) -> dict[str, str]:
    """Whether a retry may help, and after how long where that is known."""
    headers = {"x-should-retry": "true" if retry else "false"}
    if after_seconds is not None:
        milliseconds = max(0, round(after_seconds * 1000))
        headers["retry-after-ms"] = str(milliseconds)
        headers["retry-after"] = str(-(-milliseconds // 1000))
    return headers
