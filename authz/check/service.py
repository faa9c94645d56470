"""Envoy's Authorization service: parses a CheckRequest, asks the authorizer, and writes the CheckResponse."""

import logging
from typing import Any

import grpc
import grpc.aio
from envoy.service.auth.v3 import external_auth_pb2 as auth

from authz.check.authorizer import Authorizer
from authz.check.check_request import request_facts
from authz.check.check_response import admitted, denied
from authz.metrics import AUTHZ_CHECKS
from common import names, operations
from common.errors import Reason, UplionError
from credentials.identity_proof import IdentityProofs

logger = logging.getLogger(__name__)

_SERVICE = "envoy.service.auth.v3.Authorization"
# Reasons that decide nothing about the caller: they become an RPC error, for which the edge has its own 503. One that
# knows a longer time than the edge's own is a denial, which can say it.
_OUTAGES = {Reason.UNAVAILABLE, Reason.INTERNAL}
_EDGE_RETRY_SECONDS = 1.0
_ADMITTED = AUTHZ_CHECKS.labels("ADMITTED")


class AuthorizationService:
    """One check is one call; grpc.aio itself is most of its cost (see docs/benchmarks.md)."""

    def __init__(self, authorizer: Authorizer, proofs: IdentityProofs) -> None:
        self._authorizer = authorizer
        self._proofs = proofs

    def register(self, server: grpc.aio.Server) -> None:
        """Adds a generic handler: the stubs of xds-protos would import a hundred modules more."""
        check: Any = grpc.unary_unary_rpc_method_handler(self.check, auth.CheckRequest.FromString)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Check": check}),))

    async def check(self, request: auth.CheckRequest, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """The CheckResponse, serialised."""
        try:
            facts = request_facts(request, _listener(context))
            admission = await self._authorizer.authorize(facts)
        except UplionError as error:
            AUTHZ_CHECKS.labels(error.reason.name).inc()
            if error.reason in _OUTAGES and (error.retry_after_seconds or 0.0) <= _EDGE_RETRY_SECONDS:
                raise
            http = request.attributes.request.http
            operation = operations.find(http.method, http.path)
            dialect = operations.error_dialect(operation, http.headers.get("content-type", ""))
            request_id = http.headers.get(names.HEADER_REQUEST_ID, "")
            return bytes(denied(error, dialect, request_id).SerializeToString())
        _ADMITTED.inc()
        return admitted(admission, facts.rpc, self._proofs)


def _listener(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == names.HEADER_LISTENER:
            return str(value)
    return ""
