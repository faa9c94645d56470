"""The one table of errors: every surface (OpenAI HTTP, gRPC, admin) answers from it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import cast

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

ERROR_DOMAIN = "uplion"
STATUS_DETAILS_METADATA = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class _Answer:
    grpc_code: grpc.StatusCode
    http_status: int
    type: str
    code: str
    retry: bool  # what `x-should-retry` says


class Reason(Enum):
    """Why something was refused or failed. Names are frozen: clients branch on them."""

    INVALID_REQUEST = _Answer(
        grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error", "invalid_value", retry=False
    )
    UNSUPPORTED_PARAMETER = _Answer(
        grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error", "unsupported_parameter", retry=False
    )
    CONTEXT_LENGTH_EXCEEDED = _Answer(
        grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error", "context_length_exceeded", retry=False
    )
    INVALID_API_KEY = _Answer(
        grpc.StatusCode.UNAUTHENTICATED, 401, "authentication_error", "invalid_api_key", retry=False
    )
    PERMISSION_DENIED = _Answer(
        grpc.StatusCode.PERMISSION_DENIED, 403, "permission_error", "permission_denied", retry=False
    )
    MODEL_NOT_ALLOWED = _Answer(
        grpc.StatusCode.PERMISSION_DENIED, 403, "permission_error", "model_not_allowed", retry=False
    )
    MODEL_NOT_FOUND = _Answer(grpc.StatusCode.NOT_FOUND, 404, "invalid_request_error", "model_not_found", retry=False)
    NOT_FOUND = _Answer(grpc.StatusCode.NOT_FOUND, 404, "invalid_request_error", "not_found", retry=False)
    ALREADY_EXISTS = _Answer(
        grpc.StatusCode.ALREADY_EXISTS, 409, "invalid_request_error", "already_exists", retry=False
    )
    PAYLOAD_TOO_LARGE = _Answer(
        grpc.StatusCode.INVALID_ARGUMENT, 413, "invalid_request_error", "payload_too_large", retry=False
    )
    RATE_LIMIT_EXCEEDED = _Answer(
        grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "rate_limit_error", "rate_limit_exceeded", retry=True
    )
    INSUFFICIENT_QUOTA = _Answer(
        grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "insufficient_quota", "insufficient_quota", retry=False
    )
    CANCELLED = _Answer(grpc.StatusCode.CANCELLED, 499, "invalid_request_error", "client_cancelled", retry=False)
    INTERNAL = _Answer(grpc.StatusCode.INTERNAL, 500, "server_error", "internal_error", retry=True)
    UPSTREAM_FAILED = _Answer(grpc.StatusCode.UNAVAILABLE, 502, "server_error", "upstream_failed", retry=True)
    WORKER_LOST = _Answer(grpc.StatusCode.UNAVAILABLE, 502, "server_error", "worker_lost", retry=True)
    OVERLOADED = _Answer(grpc.StatusCode.UNAVAILABLE, 503, "server_error", "overloaded", retry=True)
    MODEL_LOADING = _Answer(grpc.StatusCode.UNAVAILABLE, 503, "server_error", "model_loading", retry=True)
    UNAVAILABLE = _Answer(grpc.StatusCode.UNAVAILABLE, 503, "server_error", "unavailable", retry=True)
    DEADLINE_EXCEEDED = _Answer(grpc.StatusCode.DEADLINE_EXCEEDED, 504, "server_error", "deadline_exceeded", retry=True)

    @property
    def grpc_code(self) -> grpc.StatusCode:
        return self.value.grpc_code

    @property
    def http_status(self) -> int:
        return self.value.http_status


# A worker's answers that another worker may not give: the router tries again, so this attempt's event is not the last.
ELSEWHERE = frozenset({Reason.UNAVAILABLE, Reason.OVERLOADED, Reason.WORKER_LOST})


_QUOTA = frozenset({Reason.RATE_LIMIT_EXCEEDED, Reason.INSUFFICIENT_QUOTA})


class UplionError(Exception):
    """Raised at the point of knowledge, translated once at the edge of the process.

    `message` is one sentence a client may read and act on; `param` names the offending field; `facts` go to logs and
    ErrorInfo metadata, so they hold nothing secret and no prompt text.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        param: str | None = None,
        retry_after_seconds: float | None = None,
        **facts: str | int | float,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.facts = facts


def grpc_status(error: UplionError) -> Status:
    """google.rpc.Status with ErrorInfo, and BadRequest, RetryInfo and QuotaFailure where they say something."""
    details: list[Any] = []

    def add(detail: ErrorInfo | BadRequest | RetryInfo | QuotaFailure) -> None:
        packed = Any()
        packed.Pack(detail)
        details.append(packed)

    add(
        ErrorInfo(
            reason=error.reason.name,
            domain=ERROR_DOMAIN,
            metadata={name: str(value) for name, value in error.facts.items()},
        )
    )
    if error.param is not None:
        add(BadRequest(field_violations=[BadRequest.FieldViolation(field=error.param, description=error.message)]))
    if error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(max(0, int(error.retry_after_seconds * 1e9)))
        add(RetryInfo(retry_delay=delay))
    if error.reason in _QUOTA and "rule" in error.facts:
        violation = QuotaFailure.Violation(subject=str(error.facts["rule"]), description=error.message)
        add(QuotaFailure(violations=[violation]))
    return Status(code=error.reason.grpc_code.value[0], message=error.message, details=details)


def from_rpc_error(error: grpc.aio.AioRpcError) -> UplionError:
    """The error that another of our services answered with; a status without our ErrorInfo maps by its code alone."""
    code = error.code()
    message = error.details() or code.name
    for name, value in cast(Iterable[tuple[str, bytes]], error.trailing_metadata() or ()):
        if name == STATUS_DETAILS_METADATA:
            found = _from_status(Status.FromString(value), message)
            if found is not None:
                return found
    return UplionError(_REASON_BY_CODE.get(code, Reason.INTERNAL), message)


def _from_status(status: Status, message: str) -> UplionError | None:
    reason: Reason | None = None
    facts: dict[str, str | int | float] = {}
    param: str | None = None
    retry_after_seconds: float | None = None
    for detail in status.details:
        info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
        if detail.Unpack(info) and info.domain == ERROR_DOMAIN and info.reason in Reason.__members__:
            reason = Reason[info.reason]
            facts.update(info.metadata)
        elif detail.Unpack(bad) and bad.field_violations:
            param = bad.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after_seconds = retry.retry_delay.ToNanoseconds() / 1e9
    if reason is None:
        return None
    error = UplionError(reason, message, param=param, retry_after_seconds=retry_after_seconds)
    error.facts = facts
    return error


def forget_frames(error: BaseException | None) -> None:
    """Drops the tracebacks of an error that has been answered, and of what led to it.

    They hold the call's frames, and these may hold the error: a cycle, in which a request of megabytes would stay until
    the garbage is collected, though there are too few objects to be worth it.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


_REASON_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: Reason.INVALID_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: Reason.INVALID_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: Reason.INVALID_API_KEY,
    grpc.StatusCode.PERMISSION_DENIED: Reason.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND: Reason.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: Reason.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.OVERLOADED,
    grpc.StatusCode.CANCELLED: Reason.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE: Reason.UNAVAILABLE,
}
