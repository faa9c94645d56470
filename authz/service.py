"""Envoy's Authorization service: CheckRequest in, CheckResponse out; what it means is decided in `deciding`."""

import logging
from typing import Any, Protocol

import grpc
import grpc.aio
from envoy.service.auth.v3 import external_auth_pb2 as auth

from authz import asking
from authz.answers import admitted, denied
from authz.credentials import credential
from authz.deciding import Admission
from authz.metrics import AUTHZ_CHECKS
from common import names, operations
from common.errors import Reason, UplionError

logger = logging.getLogger(__name__)

_SERVICE = "envoy.service.auth.v3.Authorization"
_MOST_OUTPUT_TOKENS = 1 << 30
# Reasons that mean "nobody can tell": an RPC error, which the edge answers with its one 503.
_OUTAGES = {Reason.UNAVAILABLE, Reason.INTERNAL}
_ADMITTED = AUTHZ_CHECKS.labels("ADMITTED")


class Deciding(Protocol):
    """Decides on a question, or raises an UplionError."""

    async def decide(self, question: asking.Question) -> Admission: ...


class AuthorizationService:
    """One check is one call; grpc.aio itself is most of its cost (see docs/benchmarks.md)."""

    def __init__(self, decider: Deciding) -> None:
        self._decider = decider

    def register(self, server: grpc.aio.Server) -> None:
        """A generic handler: xds-protos' stubs would import a hundred modules more."""
        check: Any = grpc.unary_unary_rpc_method_handler(self.check, auth.CheckRequest.FromString)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Check": check}),))

    async def check(self, request: auth.CheckRequest, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """A CheckResponse's bytes."""
        http = request.attributes.request.http
        headers = http.headers
        try:
            admission = await self._decider.decide(_question(request, _listener(context)))
        except UplionError as error:
            AUTHZ_CHECKS.labels(error.reason.name).inc()
            if error.reason in _OUTAGES:
                raise
            native = headers.get("content-type", "")[:16].lower() == "application/grpc"
            return bytes(denied(error, grpc=native).SerializeToString())
        _ADMITTED.inc()
        return admitted(admission)


def _listener(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == names.HEADER_LISTENER:
            return str(value)
    return ""


def _question(request: auth.CheckRequest, listener: str) -> asking.Question:
    http = request.attributes.request.http
    headers = http.headers
    key_text = credential(headers)
    operation = operations.find(http.method, http.path)
    kind = operations.Kind.READING if operation is None else operation.kind
    input_tokens, output_tokens, choices, tier = 0, None, 1, ""
    if operation is not None and operation.reserves:
        input_tokens = asking.estimated_input_tokens(headers.get("content-length"), http.size)
        found = request.attributes.metadata_context.filter_metadata
        if (facts := operation.facts) is not None and operations.FACTS_NAMESPACE in found:
            fields = found[operations.FACTS_NAMESPACE].fields
            if facts.tier in fields:
                tier = fields[facts.tier].string_value
            if kind is operations.Kind.GENERATION:
                numbers = {name: value.number_value for name, value in fields.items()}
                output_tokens = asking.wanted_output_tokens(facts, numbers, _MOST_OUTPUT_TOKENS)
                choices = asking.wanted_choices(facts, numbers)
    return asking.Question(
        listener=listener,
        key_text=key_text,
        kind=kind,
        model=asking.checked_model(headers.get(names.HEADER_MODEL, "")),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        choices=choices,
        request_id=headers.get(names.HEADER_REQUEST_ID, ""),
        client=asking.client_address(headers),
        tier=tier,
    )
