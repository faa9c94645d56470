"""What Envoy itself answers: the same error objects that the services give, from the same table."""

from base64 import b64encode
from dataclasses import dataclass

from envoy_data_plane.envoy.config.accesslog.v3 import (
    AccessLogFilter,
    AndFilter,
    ComparisonFilter,
    ComparisonFilterOp,
    HeaderFilter,
    ResponseFlagFilter,
    StatusCodeFilter,
)
from envoy_data_plane.envoy.config.core.v3 import DataSource, RuntimeUInt32, SubstitutionFormatString
from envoy_data_plane.envoy.config.route.v3 import HeaderMatcher
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    LocalReplyConfig,
    ResponseMapper,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.google.protobuf import Struct

from common.errors import STATUS_DETAILS_METADATA, Reason, UplionError, grpc_status
from edge.building import overwrite

_JSON = "application/json"


def status_details(error: UplionError) -> str:
    """What `grpc-status-details-bin` holds."""
    return b64encode(grpc_status(error).SerializeToString()).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    type: str
    code: str
    message: str
    retry: bool
    retry_after_seconds: int | None = None
    flags: tuple[str, ...] = ()  # Envoy response flags; empty: any
    details: str = ""  # google.rpc.Status for a native caller, as its header holds it


def _reply(
    reason: Reason, message: str, *, retry_after_seconds: int | None = None, flags: tuple[str, ...] = ()
) -> _Reply:
    answer = reason.value
    details = status_details(UplionError(reason, message, retry_after_seconds=retry_after_seconds))
    return _Reply(
        answer.http_status, answer.type, answer.code, message, answer.retry, retry_after_seconds, flags, details
    )


def _client_error(status: int, code: str, message: str) -> _Reply:
    return _Reply(status, "invalid_request_error", code, message, retry=False)


_REPLIES = (
    _reply(
        Reason.UNAVAILABLE,
        "Keys cannot be checked at the moment. Try again shortly.",
        retry_after_seconds=1,
        flags=("UAEX",),
    ),
    _reply(
        Reason.OVERLOADED,
        "Too many requests are in flight. Try again shortly.",
        retry_after_seconds=1,
        flags=("UO", "OM"),
    ),
    _reply(
        Reason.RATE_LIMIT_EXCEEDED,
        "Too many requests a second, from this address or in all. Try again shortly.",
        retry_after_seconds=1,
    ),
    _reply(Reason.UNAVAILABLE, "The service is not reachable at the moment. Try again shortly.", retry_after_seconds=1),
    _reply(Reason.NOT_FOUND, "There is nothing at this URL. The base URL ends in /v1."),
    _client_error(405, "method_not_allowed", "This URL does not take this method."),
    _Reply(408, "invalid_request_error", "request_timeout", "The request took too long to arrive.", retry=True),
    _reply(Reason.PAYLOAD_TOO_LARGE, "The request body is larger than this endpoint takes."),
    _client_error(415, "unsupported_content_encoding", "Compressed requests are not taken: send the body as it is."),
    _client_error(426, "upgrade_required", "This protocol version is not served here."),
    _client_error(431, "headers_too_large", "The request headers are too large."),
    _reply(Reason.INTERNAL, "The gateway failed. The request id in x-request-id helps to find out why."),
    _client_error(501, "not_implemented", "This transfer coding is not taken."),
    _reply(Reason.UPSTREAM_FAILED, "The service broke off its answer. Try again.", retry_after_seconds=1),
    _reply(Reason.DEADLINE_EXCEEDED, "The answer took too long."),
)
_BAD_REQUEST = _reply(Reason.INVALID_REQUEST, "The request is malformed.")
_BAD_ADMIN_REQUEST = _reply(Reason.INVALID_REQUEST, "%LOCAL_REPLY_BODY%")  # the transcoder names the field


def message(code: str) -> str:
    """What is said where a service ended with an error and no words of its own."""
    return next((reply.message for reply in _REPLIES if reply.code == code), "The request failed.")


def local_replies(*, admin: bool) -> LocalReplyConfig:
    """First match wins: native gRPC keeps plain text (it becomes grpc-message); authz's own denials pass unchanged."""
    down, *others = _REPLIES
    denied = AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=["UAEX"]))
    unchanged = "%LOCAL_REPLY_BODY%"
    grpc_denied = AccessLogFilter(and_filter=AndFilter(filters=[_is_grpc(), denied]))
    refused = AccessLogFilter(status_code_filter=_status(401))  # by front.lua, in authz's words
    mappers = [
        _for_grpc(down),
        ResponseMapper(filter=grpc_denied, body_format_override=_text(unchanged, "text/plain")),
        *(_for_grpc(reply) for reply in others),
        ResponseMapper(filter=_is_grpc(), body_format_override=_text(unchanged, "text/plain")),
        _for_http(down),
        ResponseMapper(filter=denied, body_format_override=_text(unchanged, _JSON)),
        ResponseMapper(filter=refused, body_format_override=_text(unchanged, _JSON)),
        *(_for_http(reply) for reply in others),
        _for_http(_BAD_ADMIN_REQUEST if admin else _BAD_REQUEST),
    ]
    other = _Reply(0, "invalid_request_error", "request_refused", "The request was refused.", retry=False)
    return LocalReplyConfig(mappers=mappers, body_format=_error_object(other))


def _for_grpc(reply: _Reply) -> ResponseMapper:
    both = AndFilter(filters=[_is_grpc(), *_conditions(reply)])
    return ResponseMapper(
        filter=AccessLogFilter(and_filter=both),
        body=DataSource(inline_string=reply.message),
        headers_to_add=[overwrite(STATUS_DETAILS_METADATA, reply.details)] if reply.details else [],
        body_format_override=_text("%LOCAL_REPLY_BODY%", "text/plain"),
    )


def _for_http(reply: _Reply) -> ResponseMapper:
    headers = [overwrite("x-should-retry", "true" if reply.retry else "false")]
    if reply.retry_after_seconds is not None:
        headers.append(overwrite("retry-after", str(reply.retry_after_seconds)))
        headers.append(overwrite("retry-after-ms", str(reply.retry_after_seconds * 1000)))
    conditions = _conditions(reply)
    both = conditions[0] if len(conditions) == 1 else AccessLogFilter(and_filter=AndFilter(filters=conditions))
    return ResponseMapper(filter=both, headers_to_add=headers, body_format_override=_error_object(reply))


def _conditions(reply: _Reply) -> list[AccessLogFilter]:
    conditions = [AccessLogFilter(status_code_filter=_status(reply.status))]
    if reply.flags:
        conditions.append(AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=list(reply.flags))))
    return conditions


def _status(status: int) -> StatusCodeFilter:
    value = RuntimeUInt32(default_value=status, runtime_key=f"edge.reply.{status}")
    return StatusCodeFilter(comparison=ComparisonFilter(op=ComparisonFilterOp.EQ, value=value))


def _is_grpc() -> AccessLogFilter:
    """A native call. A transcoded one looks the same by then, but for the header that tells its first path."""
    grpc = HeaderMatcher(name="content-type", string_match=StringMatcher(prefix="application/grpc", ignore_case=True))
    transcoded = HeaderMatcher(name="x-envoy-original-path", present_match=True, invert_match=True)
    both = [AccessLogFilter(header_filter=HeaderFilter(header=matcher)) for matcher in (grpc, transcoded)]
    return AccessLogFilter(and_filter=AndFilter(filters=both))


def _text(text: str, content_type: str) -> SubstitutionFormatString:
    return SubstitutionFormatString(text_format_source=DataSource(inline_string=text), content_type=content_type)


def _error_object(reply: _Reply) -> SubstitutionFormatString:
    error = {"message": reply.message, "type": reply.type, "param": None, "code": reply.code}
    return SubstitutionFormatString(json_format=Struct.from_dict({"error": error}), content_type=_JSON)
