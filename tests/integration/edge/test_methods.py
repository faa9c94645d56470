"""The gRPC method that authz proves an identity for is the one that the edge calls, however the path is written."""

import re
from typing import Any

import grpc
import pytest

from authz.check.check_request import called_method
from common import admin_api, names, operations
from common.operations import OPERATIONS

VALUES = ("k", "a.b-c~d", "a:b", "2026-11", "k%20k", "..%20", "rotate", "k:", ":revoke")


def variants(path: str) -> set[str]:
    """The path with values for its variables, and what Envoy takes for the same."""
    filled = {re.sub(r"\{[^}]+\}", value, path) for value in (*VALUES, *(("org/m", "") if "**" in path else ()))}
    some = filled | {each + end for each in filled for end in ("/", "/?page_size=1&x=/admin/v1/keys:y")}
    first = min(filled)
    return some | {first + "//"} | {first.replace("/v1/", f"/v1{odd}/", 1) for odd in ("/", "/.", "/x/..")}


@pytest.mark.parametrize("route", admin_api.routes(), ids=lambda route: route.rpc)
def test_the_admin_api_by_http(edge: Any, route: admin_api.Route) -> None:
    verb, path = route.verb, route.path
    for each in variants(path):
        edge.backend.reset()
        edge.authz.reset()
        edge.request(verb, each, b"{}" if verb in ("POST", "PATCH") else None, port=edge.admin)
        for call in edge.backend.calls:  # none where the transcoder knows no method
            http = edge.authz.checks[-1].attributes.request.http
            assert called_method(names.LISTENER_ADMIN, http.method, http.path, None) == call.method, each
    assert any(_called(edge, verb, re.sub(r"\{[^}]+\}", value, path)) == route.rpc for value in VALUES)


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.path], ids=lambda each: each.name)
def test_the_public_operations_by_http(edge: Any, operation: operations.Operation) -> None:
    for each in variants(operation.path):
        edge.backend.reset()
        edge.authz.reset()
        edge.backend.say(b"{}")
        body = b'{"model":"m"}' if operation.method == "POST" else None
        edge.request(operation.method, each, body, {"content-type": "application/json"})
        for call in edge.backend.calls:
            http = edge.authz.checks[-1].attributes.request.http
            found = operations.find(http.method, http.path)
            assert called_method(names.LISTENER_PUBLIC, http.method, http.path, found) == call.method, each


def test_every_method_by_grpc(edge: Any) -> None:
    """Also one that there is not: the service says so."""
    public = [each.rpc for each in OPERATIONS if not each.path]
    admin = [each.rpc for each in admin_api.routes()]
    for port, rpcs in ((edge.public, public), (edge.admin, admin)):
        service = rpcs[0].rpartition("/")[0]
        rpcs += [f"{service}/Nope", f"{service}/", f"{service}/x/y"]
        with edge.channel(port) as channel:
            for rpc in rpcs:
                edge.backend.reset()
                edge.authz.reset()
                try:
                    list(channel.unary_stream(rpc)(b"", timeout=60))
                except grpc.RpcError as problem:
                    assert problem.code() is grpc.StatusCode.UNKNOWN, (rpc, problem)  # the backend says nothing
                http = edge.authz.checks[-1].attributes.request.http
                found = operations.find(http.method, http.path)
                listener = names.LISTENER_ADMIN if port == edge.admin else names.LISTENER_PUBLIC
                proven = called_method(listener, http.method, http.path, found)
                assert (edge.backend.calls[-1].method, proven) == (rpc, rpc)


def _called(edge: Any, verb: str, path: str) -> str | None:
    edge.backend.reset()
    edge.request(verb, path, b"{}" if verb in ("POST", "PATCH") else None, port=edge.admin)
    return edge.backend.calls[-1].method if edge.backend.calls else None
