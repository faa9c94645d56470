import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from common.errors import Reason, UplionError, grpc_status


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_answers_as_a_status(reason: Reason) -> None:
    error = UplionError(reason, "What is wrong.", param="model", retry_after_seconds=1.2344, limit=3)
    status = grpc_status(error)
    assert status.code == reason.grpc_code.value[0]
    info, retry = ErrorInfo(), RetryInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.metadata["limit"]) == (reason.name, "3")
    assert status.details[2].Unpack(retry)


def test_reasons_and_codes_are_frozen() -> None:
    """Clients branch on these; a change here breaks them."""
    assert {reason.name: (reason.http_status, reason.value.code) for reason in Reason} == {
        "INVALID_REQUEST": (400, "invalid_value"),
        "UNSUPPORTED_PARAMETER": (400, "unsupported_parameter"),
        "CONTEXT_LENGTH_EXCEEDED": (400, "context_length_exceeded"),
        "INVALID_API_KEY": (401, "invalid_api_key"),
        "PERMISSION_DENIED": (403, "permission_denied"),
        "MODEL_NOT_ALLOWED": (403, "model_not_allowed"),
        "MODEL_NOT_FOUND": (404, "model_not_found"),
        "NOT_FOUND": (404, "not_found"),
        "ALREADY_EXISTS": (409, "already_exists"),
        "PAYLOAD_TOO_LARGE": (413, "payload_too_large"),
        "RATE_LIMIT_EXCEEDED": (429, "rate_limit_exceeded"),
        "INSUFFICIENT_QUOTA": (429, "insufficient_quota"),
        "CANCELLED": (499, "client_cancelled"),
        "INTERNAL": (500, "internal_error"),
        "UPSTREAM_FAILED": (502, "upstream_failed"),
        "WORKER_LOST": (502, "worker_lost"),
        "OVERLOADED": (503, "overloaded"),
        "MODEL_LOADING": (503, "model_loading"),
        "UNAVAILABLE": (503, "unavailable"),
        "DEADLINE_EXCEEDED": (504, "deadline_exceeded"),
    }
