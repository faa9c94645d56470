"""Envoy's local replies: the same error objects that services answer with, in the dialect of the route."""

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from envoy_data_plane.envoy.config.accesslog.v3 import (
    AccessLogFilter,
    AndFilter,
    ComparisonFilter,
    ComparisonFilterOp,
    HeaderFilter,
    OrFilter,
    ResponseFlagFilter,
    StatusCodeFilter,
)
from envoy_data_plane.envoy.config.core.v3 import DataSource, RuntimeUInt32, SubstitutionFormatString
from envoy_data_plane.envoy.config.route.v3 import HeaderMatcher
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    LocalReplyConfig,
    ResponseMapper,
)
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher
from envoy_data_plane.google.protobuf import Struct

from common.error_dialects import OBJECTS, HttpError, retry_headers
from common.errors import STATUS_DETAILS_METADATA, Reason, UplionError, grpc_status
from common.names import HEADER_REQUEST_ID
from common.operations import GRPC_CONTENT_TYPE, Dialect, Operation
from edge.building import if_absent

_JSON = "application/json"
_UNCHANGED = "%LOCAL_REPLY_BODY%"
_AT_LEAST = ComparisonFilterOp.GE
# What Envoy refuses before it makes a request of it has no id yet: it gets one for the answer and the access log.
REQUEST_ID = (
    '%COALESCE({"operators":[{"command":"REQ","param":"X-REQUEST-ID"},{"command":"RESP","param":"X-REQUEST-ID"}]})%'
)
_NEW_REQUEST_ID = '%COALESCE({"operators":[{"command":"REQ","param":"X-REQUEST-ID"},"UNIQUE_ID"]})%'
_FAILED = "The gateway failed. The request id in x-request-id helps to find out why."
_ORIGINAL_PATH = "x-envoy-original-path"  # the transcoder moves the path there and puts the gRPC method in its place


def status_details(error: UplionError) -> str:
    """The value of `grpc-status-details-bin`."""
    return b64encode(grpc_status(error).SerializeToString()).decode().rstrip("=")


def http_dialects(operations: Iterable[Operation]) -> list[Dialect]:
    """The dialects of all operations with an HTTP path; OpenAI's is the last, since unknown paths have it too."""
    found = dict.fromkeys(operation.dialect for operation in operations if operation.path)
    return [*(dialect for dialect in found if dialect is not Dialect.OPENAI), Dialect.OPENAI]


@dataclass(frozen=True, slots=True)
class _Reply:
    error: HttpError
    retry: bool
    retry_after_seconds: int | None = None
    flags: tuple[str, ...] = ()  # Envoy response flags; empty: any
    header: str = ""  # which the request has; empty: any
    details: str = ""  # google.rpc.Status in base64, for `grpc-status-details-bin`


def _reply(
    reason: Reason, message: str, *, retry_after_seconds: int | None = None, flags: tuple[str, ...] = ()
) -> _Reply:
    error = UplionError(reason, message, retry_after_seconds=retry_after_seconds)
    details = status_details(error)
    return _Reply(HttpError.of(error), reason.value.retry, retry_after_seconds, flags=flags, details=details)


def _client_error(status: int, code: str, message: str, *, retry: bool = False, header: str = "") -> _Reply:
    return _Reply(HttpError(status, "invalid_request_error", code, message), retry, header=header)


# Of ext_authz itself, not of authz: the same flag marks authz's denials, and those pass unchanged.
_OF_CHECKS = (
    _reply(
        Reason.UNAVAILABLE,
        "Keys cannot be checked at the moment. Try again shortly.",
        retry_after_seconds=1,
        flags=("UAEX",),
    ),
    _reply(Reason.INTERNAL, _FAILED, flags=("UAEX",)),
)
_REPLIES = (
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
    _client_error(403, "upgrade_refused", "The connection cannot be upgraded here: WebSockets are not served."),
    _client_error(405, "method_not_allowed", "This URL does not take this method."),
    _client_error(408, "request_timeout", "The request took too long to arrive.", retry=True),
    _reply(Reason.PAYLOAD_TOO_LARGE, "The request body is larger than this endpoint takes."),
    *(
        _client_error(
            415,
            "unsupported_content_encoding",
            "Compressed requests are not taken: send the body as it is.",
            header=header,
        )
        for header in ("content-encoding", "grpc-encoding")
    ),
    _client_error(
        415,
        "unsupported_media_type",
        "This URL takes gRPC alone (content-type application/grpc, HTTP/2), neither gRPC-Web nor JSON: call /v1 instead"
        " where gRPC cannot be used.",
    ),
    _client_error(426, "upgrade_required", "This version of HTTP is not served: use HTTP/1.1 or HTTP/2."),
    _client_error(431, "headers_too_large", "The request headers are too large."),
    _reply(Reason.INTERNAL, _FAILED),
    _client_error(501, "not_implemented", "This transfer coding is not taken."),
    _reply(Reason.UPSTREAM_FAILED, "The service broke off its answer. Try again.", retry_after_seconds=1),
    _reply(Reason.DEADLINE_EXCEEDED, "The answer took too long."),
)
_BAD_REQUEST = _reply(Reason.INVALID_REQUEST, "The request is malformed: %RESPONSE_CODE_DETAILS%.")


_OTHER = _client_error(0, "request_refused", "The request was refused.")


def message(code: str) -> str:
    """The message for an error whose service gave none."""
    return next((reply.error.message for reply in _REPLIES if reply.error.code == code), "The request failed.")


def local_replies(operations: Sequence[Operation]) -> LocalReplyConfig:
    """First match wins: native gRPC keeps plain text (it becomes grpc-message); authz's own denials pass unchanged."""
    denied = AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=["UAEX"]))
    refused = AccessLogFilter(status_code_filter=_status(401))  # by front.lua, with the same body as authz's
    plain, json = _text(_UNCHANGED, "text/plain"), _text(_UNCHANGED, _JSON)
    dialects = http_dialects(operations)
    routes = {each: None if each is Dialect.OPENAI else _routes(each, operations) for each in dialects}
    return LocalReplyConfig(
        mappers=[
            *(_for_grpc(reply) for reply in _OF_CHECKS),
            _mapper([_is_grpc(), denied], plain),
            *(_for_grpc(reply) for reply in _REPLIES),
            _mapper([_is_grpc()], plain),
            *(_for_http(reply, dialect, where) for dialect, where in routes.items() for reply in _OF_CHECKS),
            _mapper([denied], json),
            _mapper([refused], json),
            *(
                _for_http(reply, dialect, where)
                for dialect, where in routes.items()
                for reply in (*_REPLIES, _BAD_REQUEST, _OTHER)
            ),
        ]
    )


def _mapper(
    filters: list[AccessLogFilter],
    body_format: SubstitutionFormatString,
    headers: Mapping[str, str] = MappingProxyType({}),
    body: str | None = None,
) -> ResponseMapper:
    """Where all filters match, the answer has this body, a request id, and these headers where authz set none."""
    headers = {HEADER_REQUEST_ID: _NEW_REQUEST_ID, **headers}
    return ResponseMapper(
        filter=_all(*filters),
        body=None if body is None else DataSource(inline_string=body),
        headers_to_add=[if_absent(name, value) for name, value in headers.items()],
        body_format_override=body_format,
    )


def _for_grpc(reply: _Reply) -> ResponseMapper:
    headers = {STATUS_DETAILS_METADATA: reply.details} if reply.details else {}
    return _mapper([_is_grpc(), *_conditions(reply)], _text(_UNCHANGED, "text/plain"), headers, reply.error.message)


def _for_http(reply: _Reply, dialect: Dialect, where: AccessLogFilter | None) -> ResponseMapper:
    """`where` matches the dialect's routes; None: all that no other mapper matched."""
    headers = retry_headers(retry=reply.retry, after_seconds=reply.retry_after_seconds)
    return _mapper([*_conditions(reply), *([] if where is None else [where])], _object(reply, dialect), headers)


def _conditions(reply: _Reply) -> list[AccessLogFilter]:
    conditions = [AccessLogFilter(status_code_filter=_status(reply.error.status))]
    if reply.header:
        conditions.append(_has_header(HeaderMatcher(name=reply.header, present_match=True)))
    if reply.flags:
        conditions.append(AccessLogFilter(response_flag_filter=ResponseFlagFilter(flags=list(reply.flags))))
    return conditions


def _all(*filters: AccessLogFilter) -> AccessLogFilter:
    return filters[0] if len(filters) == 1 else AccessLogFilter(and_filter=AndFilter(filters=list(filters)))


def _status(status: int) -> StatusCodeFilter:
    """0: any."""
    value = RuntimeUInt32(default_value=status, runtime_key=f"edge.reply.{status}")
    return StatusCodeFilter(comparison=ComparisonFilter(op=ComparisonFilterOp.EQ if status else _AT_LEAST, value=value))


def _has_header(matcher: HeaderMatcher) -> AccessLogFilter:
    return AccessLogFilter(header_filter=HeaderFilter(header=matcher))


def _routes(dialect: Dialect, operations: Iterable[Operation]) -> AccessLogFilter:
    """A request for one of the dialect's paths, whatever its method; before it is transcoded and after."""
    spoken = [operation for operation in operations if operation.dialect is dialect and operation.path]
    paths = dict.fromkeys(each.pattern or re.escape(each.path) for each in spoken)
    path = StringMatcher(safe_regex=RegexMatcher(regex=rf"({'|'.join(paths)})(\?.*)?"))
    either = [HeaderMatcher(name=name, string_match=path) for name in (":path", _ORIGINAL_PATH)]
    return AccessLogFilter(or_filter=OrFilter(filters=[_has_header(matcher) for matcher in either]))


def _is_grpc() -> AccessLogFilter:
    """A native call. A transcoded request has the same content type by then, but also the original path."""
    pattern = StringMatcher(safe_regex=RegexMatcher(regex=GRPC_CONTENT_TYPE.pattern))
    grpc = HeaderMatcher(name="content-type", string_match=pattern)
    transcoded = HeaderMatcher(name=_ORIGINAL_PATH, present_match=True, invert_match=True)
    return _all(_has_header(grpc), _has_header(transcoded))


def _text(text: str, content_type: str) -> SubstitutionFormatString:
    return SubstitutionFormatString(text_format_source=DataSource(inline_string=text), content_type=content_type)


def _object(reply: _Reply, dialect: Dialect) -> SubstitutionFormatString:
    found = OBJECTS[dialect](reply.error, REQUEST_ID)
    return SubstitutionFormatString(json_format=Struct.from_dict(found), content_type=_JSON)
