"""Decisions in Envoy's words: CheckResponse for an admission and for a denial, to HTTP and to gRPC clients."""

from base64 import b64encode
from collections.abc import Iterator

from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2 as auth

from authz.credentials import HEADERS
from authz.deciding import Admission
from authz.refusals import LimitError
from authz.standing import Left, Standing
from common.errors import STATUS_DETAILS_METADATA, UplionError, grpc_status, openai_body, openai_headers
from common.identity import Identity

_OVERWRITE = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_OK = 0


def _template() -> bytes:
    """An admission with every value empty: parsing it and filling it in costs half of building it (7 of 13 us)."""
    response = auth.CheckResponse()
    response.status.code = _OK
    for name, _ in _NOBODY.to_headers():
        option = response.ok_response.headers.add()
        option.header.key = name
        option.append_action = _OVERWRITE
        option.keep_empty_value = True
    response.ok_response.headers_to_remove.extend(HEADERS)
    return bytes(response.SerializeToString())


_NOBODY = Identity("", "", "", "", "", None, None, "")
_TEMPLATE = _template()


def admitted(admission: Admission) -> auth.CheckResponse:
    """Every identity header is overwritten, the empty ones too; the credential goes no further."""
    response = auth.CheckResponse.FromString(_TEMPLATE)
    ok = response.ok_response
    for option, (_, value) in zip(ok.headers, admission.identity.to_headers(), strict=True):
        option.header.value = value
    for name, value in standing_headers(admission.standing):
        option = ok.response_headers_to_add.add()
        option.header.key = name
        option.header.value = value
        option.append_action = _OVERWRITE
    return response


def denied(error: UplionError, *, grpc: bool) -> auth.CheckResponse:
    """For gRPC, Envoy maps the HTTP status (429 would be UNAVAILABLE) unless `grpc-status` says otherwise."""
    status = grpc_status(error)
    response = auth.CheckResponse()
    response.status.code = status.code
    denial = response.denied_response
    denial.status.code = error.reason.http_status
    if grpc:
        denial.body = error.message
        headers = {
            "grpc-status": str(status.code),
            STATUS_DETAILS_METADATA: b64encode(status.SerializeToString()).decode().rstrip("="),
        }
    else:
        denial.body = openai_body(error).decode()
        headers = {"content-type": "application/json", **openai_headers(error)}
    if isinstance(error, LimitError):
        headers.update(standing_headers(error.standing))
    for name, value in headers.items():
        option = denial.headers.add()
        option.header.key = name
        option.header.value = value
        option.append_action = _OVERWRITE
    return response


def standing_headers(standing: Standing) -> list[tuple[str, str]]:
    """OpenAI's x-ratelimit-* for the tightest limit of each kind. What is for life has no reset."""
    headers: list[tuple[str, str]] = []
    for kind, left in (("requests", standing.requests), ("tokens", standing.tokens)):
        if left is not None:
            headers += _left_headers(kind, left)
    return headers


def _left_headers(kind: str, left: Left) -> Iterator[tuple[str, str]]:
    yield f"x-ratelimit-limit-{kind}", str(left.rule.limit.amount)
    yield f"x-ratelimit-remaining-{kind}", str(left.remaining)
    if left.reset_seconds is not None:
        yield f"x-ratelimit-reset-{kind}", duration(left.reset_seconds)


def duration(seconds: float) -> str:
    """As OpenAI writes it: `12ms`, `1.5s`, `6m0s`, and so on without hours."""
    milliseconds = max(0, round(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s"
