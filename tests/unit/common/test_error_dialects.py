"""Each dialect's error objects, for every reason."""

import json

import pytest

from common.error_dialects import HttpError, anthropic_object, error_body, error_headers
from common.errors import Reason, UplionError
from common.operations import Dialect

_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    499: "invalid_request_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "api_error",
}


def error(reason: Reason) -> UplionError:
    return UplionError(reason, 'What is "wrong": ä\ud800.', param="model", retry_after_seconds=1.2344)


@pytest.mark.parametrize("reason", list(Reason))
def test_openai_reads_message_type_param_and_code(reason: Reason) -> None:
    body = error_body(Dialect.OPENAI, error(reason), "r1")
    answer = reason.value
    expected = f'"type": "{answer.type}", "param": "model", "code": "{answer.code}"'
    assert body.decode() == '{"error": {"message": "What is \\"wrong\\": ä?.", ' + expected + "}}"


@pytest.mark.parametrize("reason", list(Reason))
def test_anthropic_reads_a_type_by_the_status_and_the_request_id(reason: Reason) -> None:
    body = error_body(Dialect.ANTHROPIC, error(reason), "r1")
    inner = f'{{"type": "{_ANTHROPIC[reason.http_status]}", "message": "What is \\"wrong\\": ä?."}}'
    assert body.decode() == f'{{"type": "error", "error": {inner}, "request_id": "r1"}}'


def test_an_unknown_request_id_is_null() -> None:
    assert json.loads(error_body(Dialect.ANTHROPIC, error(Reason.INTERNAL), ""))["request_id"] is None


@pytest.mark.parametrize("status", [405, 408, 415, 426, 431, 501])
def test_what_only_the_edge_answers_has_a_type_of_anthropics_too(status: int) -> None:
    found = anthropic_object(HttpError(status, "invalid_request_error", "x", "y"), "r1")
    expected = "api_error" if status >= 500 else "invalid_request_error"
    assert found == {"type": "error", "error": {"type": expected, "message": "y"}, "request_id": "r1"}


@pytest.mark.parametrize("reason", list(Reason))
def test_headers_say_whether_and_when_to_retry(reason: Reason) -> None:
    retry = "true" if reason.value.retry else "false"
    assert error_headers(error(reason)) == {"x-should-retry": retry, "retry-after-ms": "1234", "retry-after": "2"}
    assert error_headers(UplionError(reason, "x")) == {"x-should-retry": retry}


def test_what_waiting_does_not_mend_is_not_to_be_retried() -> None:
    for reason in (Reason.INSUFFICIENT_QUOTA, Reason.INVALID_API_KEY, Reason.INVALID_REQUEST, Reason.ALREADY_EXISTS):
        assert error_headers(UplionError(reason, "x"))["x-should-retry"] == "false"
    assert error_headers(UplionError(Reason.RATE_LIMIT_EXCEEDED, "x"))["x-should-retry"] == "true"
