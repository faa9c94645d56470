"""Writes Envoy's CheckResponse: for an admission, and for a denial to HTTP and to gRPC clients."""

from base64 import b64encode
from collections.abc import Iterator
from functools import lru_cache

from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2 as auth
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from authz.check.authorizer import Admission
from authz.credentials.request_credential import HEADERS
from authz.limits.rate_limit_status import LimitStatus, RateLimitStatus
from authz.limits.refusals import LimitError
from common import names
from common.error_dialects import error_body, error_headers
from common.errors import STATUS_DETAILS_METADATA, UplionError, grpc_status
from common.operations import Dialect
from credentials.identity_proof import IdentityProofs

_OVERWRITE = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_OK = 0
_CACHED_HEADERS = 50_000  # of identities, about 200 bytes each: one caller's are the same every time


def admitted(admission: Admission, rpc: str, proofs: IdentityProofs) -> bytes:
    """A serialised CheckResponse, assembled from prepared bytes: that takes a quarter of protobuf's time.

    Every identity header is overwritten, the empty ones too, and proven for a call of `rpc`; the credential's headers
    are removed.
    """
    headers = admission.identity.to_headers()
    parts = [
        _set(name, value) if name != names.HEADER_RESERVATION else _option(_SET, name, value) for name, value in headers
    ]
    proof = proofs.make(rpc, admission.identity.request_id, headers)
    parts.append(_option(_SET, names.HEADER_PROOF, proof))
    parts += [_option(_TO_CLIENT, name, value) for name, value in rate_limit_headers(admission.rate_limits)]
    parts.append(_REMOVED)
    ok = b"".join(parts)
    return b"".join((_HEAD, _varint(len(ok)), ok))


class _HeaderField:
    """A field of OkHttpResponse that holds headers: the bytes before and after each header's value."""

    def __init__(self, field: str, *, keep_empty: bool) -> None:
        self.field = field
        self.keep_empty = keep_empty
        self.known: dict[str, tuple[bytes, bytes, bytes, int]] = {}

    def pieces(self, name: str) -> tuple[bytes, bytes, bytes, int]:
        """Field tag, the header's key, what follows the header, and the length of the last two with a tag."""
        found = self.known.get(name)
        if found is None:
            option = base_pb2.HeaderValueOption(append_action=_OVERWRITE, keep_empty_value=self.keep_empty)
            tail = option.SerializeToString()
            key = base_pb2.HeaderValue(key=name).SerializeToString()
            tag = _tag(auth.OkHttpResponse, self.field)
            found = self.known[name] = (tag, key, tail, len(tail))
        return found


def _option(kind: _HeaderField, name: str, value: str) -> bytes:
    tag, key, tail, tail_length = kind.pieces(name)
    text = value.encode()
    header = key + _VALUE + _varint(len(text)) + text if text else key
    length = len(header)
    size = _varint(length)
    return tag + _varint(len(_HEADER) + len(size) + length + tail_length) + _HEADER + size + header + tail


@lru_cache(_CACHED_HEADERS)
def _set(name: str, value: str) -> bytes:
    return _option(_SET, name, value)


def _varint(number: int) -> bytes:
    if number < len(_SMALL):
        return _SMALL[number]
    return bytes((number & 0x7F | 0x80,)) + _varint(number >> 7)


def _tag(message: type[Message], field: str) -> bytes:
    """Of a field that is a message or text."""
    return bytes((message.DESCRIPTOR.fields_by_name[field].number << 3 | 2,))


_SMALL = [bytes((number,)) for number in range(128)]
_SET, _TO_CLIENT = _HeaderField("headers", keep_empty=True), _HeaderField("response_headers_to_add", keep_empty=False)
_HEADER, _VALUE = _tag(base_pb2.HeaderValueOption, "header"), _tag(base_pb2.HeaderValue, "value")
_REMOVED = auth.OkHttpResponse(headers_to_remove=HEADERS).SerializeToString()
_HEAD: bytes = auth.CheckResponse(status=Status(code=_OK)).SerializeToString() + _tag(auth.CheckResponse, "ok_response")


def denied(error: UplionError, dialect: Dialect, request_id: str) -> auth.CheckResponse:
    """For gRPC, Envoy maps the HTTP status (429 would be UNAVAILABLE) unless `grpc-status` says otherwise."""
    status = grpc_status(error)
    response = auth.CheckResponse()
    response.status.code = status.code
    denial = response.denied_response
    denial.status.code = error.reason.http_status
    if dialect is Dialect.NATIVE:
        denial.body = error.message
        headers = {
            "grpc-status": str(status.code),
            STATUS_DETAILS_METADATA: b64encode(status.SerializeToString()).decode().rstrip("="),
        }
    else:
        denial.body = error_body(dialect, error, request_id).decode()
        headers = {"content-type": "application/json", **error_headers(error)}
    if isinstance(error, LimitError):
        headers.update(rate_limit_headers(error.rate_limits))
    for name, value in headers.items():
        option = denial.headers.add()
        option.header.key = name
        option.header.value = value
        option.append_action = _OVERWRITE
    return response


def rate_limit_headers(rate_limits: RateLimitStatus) -> list[tuple[str, str]]:
    """OpenAI's x-ratelimit-* for the tightest limit of each kind. A limit for life has no reset."""
    headers: list[tuple[str, str]] = []
    for kind, left in (("requests", rate_limits.requests), ("tokens", rate_limits.tokens)):
        if left is not None:
            headers += _left_headers(kind, left)
    return headers


def _left_headers(kind: str, left: LimitStatus) -> Iterator[tuple[str, str]]:
    yield f"x-ratelimit-limit-{kind}", str(left.rule.limit.amount)
    yield f"x-ratelimit-remaining-{kind}", str(left.remaining)
    if left.reset_seconds is not None:
        yield f"x-ratelimit-reset-{kind}", duration(left.reset_seconds)


def duration(seconds: float) -> str:
    """In OpenAI's form, which is Go's: `12ms`, `1.5s`, `6m0s`, `18h43m0s`."""
    milliseconds = max(0, round(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest / 1000:g}s" if hours else f"{minutes}m{rest / 1000:g}s"
