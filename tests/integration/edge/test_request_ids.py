"""Every answer has a request id, and it is the one that authz and the services got."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3 import external_auth_pb2 as auth
from google.api.httpbody_pb2 import HttpBody

from tests.kit.until import until_sync

NATIVE = "/uplion.inference.v1.InferenceService/Chat"
JSON = {"content-type": "application/json"}
CHAT = b'{"model":"m","messages":[]}'


def denied(request: auth.CheckRequest, context: grpc.ServicerContext) -> auth.CheckResponse:
    response = auth.CheckResponse()
    response.status.code = 8
    response.denied_response.status.code = 429
    response.denied_response.body = '{"error":{"message":"no","type":"x","param":null,"code":"x"}}'
    option = response.denied_response.headers.add()
    option.header.key, option.header.value = "content-type", "application/json"
    return response


def away(request: auth.CheckRequest, context: grpc.ServicerContext) -> auth.CheckResponse:
    context.abort(grpc.StatusCode.UNAVAILABLE, "down")
    raise AssertionError


@pytest.mark.parametrize(
    ("status", "method", "path", "body", "headers"),
    [
        (200, "POST", "/v1/chat/completions", CHAT, {}),
        (200, "GET", "/v1/models", None, {}),
        (401, "POST", "/v1/chat/completions", CHAT, {"authorization": "Bearer nonsense"}),
        (404, "GET", "/nope", None, {}),
        (405, "GET", "/v1/chat/completions", None, {}),
        (413, "POST", "/v1/chat/completions", b"x" * ((1 << 20) + 1), {}),
        (415, "POST", "/v1/chat/completions", CHAT, {"content-encoding": "gzip"}),
    ],
)
def test_the_edges_own_answers_and_the_services(
    edge: Any, status: int, method: str, path: str, body: bytes | None, headers: dict[str, str]
) -> None:
    edge.backend.say(b"{}")
    reply = edge.request(method, path, body, {**JSON, **headers})
    assert reply.status == status
    assert reply.headers["x-request-id"]
    for check in edge.authz.checks:
        assert check.attributes.request.http.headers["x-request-id"] == reply.headers["x-request-id"]
    for call in edge.backend.calls:
        assert call.all("x-request-id") == [reply.headers["x-request-id"]]


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize("port", ["public", "admin"])
@pytest.mark.parametrize(
    ("status", "code", "data"),
    [
        (400, "invalid_value", b"GET /v1/models/a%2fb HTTP/1.1\r\nhost: x\r\n\r\n"),
        (400, "invalid_value", b"GET /v1/models%5Ca HTTP/1.1\r\nhost: x\r\n\r\n"),
        (400, "invalid_value", b"GET /v1/models#a HTTP/1.1\r\nhost: x\r\n\r\n"),
        (400, "invalid_value", b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx_a: 1\r\n\r\n"),
        (400, "invalid_value", b"GET /v1/models HTTP/1.1\r\n\r\n"),
        (400, "invalid_value", b"FOO /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"),
        (400, "invalid_value", b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n"),
        (400, "invalid_value", b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx y: a\r\n\r\n"),
        (400, "invalid_value", b"GET ftp://x/v1/models HTTP/1.1\r\nhost: x\r\n\r\n"),
        (400, "invalid_value", HEAD + b"content-length: x\r\n\r\n"),
        (400, "invalid_value", HEAD + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        (404, "not_found", b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n"),
        (404, "not_found", b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n"),
        (431, "headers_too_large", b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 200_000 + b"\r\n\r\n"),
        (501, "not_implemented", HEAD + b"transfer-encoding: x\r\n\r\n"),
    ],
)
def test_what_envoy_takes_for_no_request_has_an_error_object_and_an_id_that_the_log_knows(
    edge: Any, port: str, status: int, code: str, data: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", getattr(edge, port)), timeout=60) as wire:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # answered before all of it was sent
            wire.sendall(data)
        answer = http.client.HTTPResponse(wire)
        answer.begin()
        body = answer.read()
    error = json.loads(body)["error"]
    assert (answer.status, error["code"]) == (status, code)
    assert error["message"]
    assert answer.headers["x-should-retry"] == "false"
    found = answer.headers["x-request-id"]
    assert len(found) == 36
    assert (edge.authz.checks, edge.backend.calls) == ([], [])
    until_sync(lambda: found in edge.access_log.read_text())


@pytest.mark.parametrize(("answer", "status"), [(denied, 429), (away, 503)])
def test_refusals_by_authz(edge: Any, answer: Any, status: int) -> None:
    edge.authz.answer = answer
    reply = edge.chat()
    assert reply.status == status
    assert reply.headers["x-request-id"] == edge.authz.checks[-1].attributes.request.http.headers["x-request-id"]
    with edge.channel() as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(NATIVE)(b"", timeout=60)
    assert request_id(refusal.value) == edge.authz.checks[-1].attributes.request.http.headers["x-request-id"]


def test_streams_and_refusals_by_the_router(edge: Any) -> None:
    edge.backend.say(b"data: {}\n\n", b"data: [DONE]\n\n", content_type="text/event-stream")
    reply = edge.chat({"model": "m", "messages": [], "stream": True})
    assert reply.headers["x-request-id"] == edge.backend.calls[-1].all("x-request-id")[0]
    edge.backend.reset()
    edge.backend.initial = [("x-uplion-status", "404")]
    edge.backend.say(b"{}")
    reply = edge.chat()
    assert (reply.status, reply.headers["x-request-id"]) == (404, edge.backend.calls[-1].all("x-request-id")[0])
    edge.backend.reset()
    edge.backend.abort = (grpc.StatusCode.INTERNAL, "broken")
    reply = edge.chat()
    assert (reply.status, reply.headers["x-request-id"]) == (500, edge.backend.calls[-1].all("x-request-id")[0])


def test_native_calls(edge: Any) -> None:
    def frames() -> Iterator[bytes]:
        yield HttpBody(data=b"fine").SerializeToString()

    edge.backend.frames = frames
    with edge.channel() as channel:
        _, call = channel.unary_unary(NATIVE).with_call(b"", timeout=60)
        assert request_id(call) == edge.backend.calls[-1].all("x-request-id")[0]
        edge.backend.reset()
        edge.backend.abort = (grpc.StatusCode.NOT_FOUND, "no such model")
        with pytest.raises(grpc.RpcError) as refusal:
            channel.unary_unary(NATIVE)(b"", timeout=60)
        assert request_id(refusal.value) == edge.backend.calls[-1].all("x-request-id")[0]


def request_id(call: Any) -> str:
    """An answer without a message has its headers among its trailers."""
    found = dict((*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())))
    return str(found["x-request-id"])
