"""Properties 5 to 7 of the edge: outages are 503, Envoy's own replies are error objects, odd requests go nowhere."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3 import external_auth_pb2 as auth

from credentials.api_keys import TEST_KEY

CHAT = b'{"model":"m"}'
KEY = f"authorization: Bearer {TEST_KEY}\r\n".encode()
BEHIND = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + KEY + b"\r\n"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + KEY


def fails(*_: object) -> Any:
    raise RuntimeError("canary")


@pytest.fixture(scope="module")
def impatient(backends: Any, another_edge: Any) -> Iterator[int]:
    """The public port of an edge whose times are quickly reached."""
    process = another_edge(
        backends[3],
        backends[2],
        authz_timeout_seconds=0.25,
        request_headers_timeout_seconds=0.5,
        request_timeout_seconds=1.0,
        stream_idle_timeout_seconds=2.0,
    )
    yield process.ports["public"]
    process.stop()


def test_a_failing_authz_is_503_and_never_403(edge: Any) -> None:
    edge.authz.answer = fails
    assert_unavailable(edge, edge.chat())


def test_a_slow_authz_is_503_in_time_and_never_403(edge: Any, impatient: int) -> None:
    over = threading.Event()

    def late(*_: object) -> auth.CheckResponse:
        over.wait(30)
        return auth.CheckResponse()

    edge.authz.answer = late
    reply = edge.chat(port=impatient)
    over.set()
    assert_unavailable(edge, reply)


def assert_unavailable(edge: Any, reply: Any) -> None:
    """The answer to a check that could not be made; the next one can be made."""
    assert reply.status == 503
    assert (reply.error["type"], reply.error["code"]) == ("server_error", "unavailable")
    assert reply.headers["x-should-retry"] == "true"
    assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("1", "1000")
    assert b"canary" not in reply.body
    assert edge.backend.calls == []
    edge.authz.answer = None
    assert edge.chat().status == 200


def test_a_denial_passes_unchanged(edge: Any) -> None:
    body = b'{"error":{"message":"m","type":"t","param":null,"code":"c"}}'
    for status in (400, 401, 403, 404, 413, 429):

        def deny(*_: object, status: int = status) -> auth.CheckResponse:
            response = auth.CheckResponse()
            response.status.code = 7
            response.denied_response.status.code = status
            response.denied_response.body = body.decode()
            for name, value in (("content-type", "application/json"), ("retry-after-ms", "1234")):
                option = response.denied_response.headers.add()
                option.header.key, option.header.value = name, value
            return response

        edge.authz.answer = deny
        reply = edge.chat()
        assert (reply.status, reply.body, reply.headers["retry-after-ms"]) == (status, body, "1234")
        assert reply.headers["content-type"] == "application/json"


@pytest.fixture(scope="module")
def lonely(backends: Any, another_edge: Any) -> Iterator[Any]:
    """Envoys whose authz, and whose router, are not there."""
    with socket.socket() as unserved, contextlib.ExitStack() as stack:
        unserved.bind(("127.0.0.1", 0))
        port = unserved.getsockname()[1]
        started = []
        for authz_port in (port, backends[3]):
            process = another_edge(authz_port, port)
            stack.callback(process.stop)
            started.append(process)
        yield started


@pytest.mark.parametrize("which", [0, 1])
def test_no_authz_and_no_router_are_503(edge: Any, lonely: Any, which: int) -> None:
    public = lonely[which].ports["public"]
    reply = edge.request("POST", "/v1/chat/completions", CHAT, port=public)
    assert reply.status == 503
    assert (reply.error["type"], reply.error["code"]) == ("server_error", "unavailable")
    assert reply.headers["x-should-retry"] == "true"
    assert edge.request("GET", "/nope", port=public).status == 404
    admin = edge.request("GET", "/admin/v1/keys", port=lonely[which].ports["admin"])
    assert (admin.status, admin.error["code"]) == (503, "unavailable")


@pytest.mark.parametrize("which", [0, 1])
def test_no_authz_and_no_router_are_unavailable_to_grpc(edge: Any, lonely: Any, which: int) -> None:
    with edge.channel(lonely[which].ports["public"]) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary("/uplion.inference.v1.InferenceService/Chat")(b"", timeout=60)
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not (refusal.value.details() or "").startswith("{")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413_without_a_check(edge: Any, chunked: bool) -> None:
    body = b'{"model":"m","x":"' + b"x" * (1 << 20) + b'"}'
    if chunked:
        head = HEAD + b"transfer-encoding: chunked\r\n\r\n"
        answer = edge.raw(head + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "payload_too_large"
    else:
        reply = edge.chat(body)
        assert (reply.status, reply.error["code"], reply.error["type"]) == (
            413,
            "payload_too_large",
            "invalid_request_error",
        )
        assert reply.headers["x-should-retry"] == "false"
    assert edge.authz.checks == []


def test_a_body_just_under_the_limit_passes(edge: Any) -> None:
    body = b'{"model":"m","x":"' + b"x" * ((1 << 20) - 100) + b'"}'
    assert edge.chat(body).status == 200
    assert edge.backend.calls[-1].body == body


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nope", 404),
        ("POST", "/v1/responses", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v1/chat/completions;x=1", 404),
        ("POST", "/V1/chat/completions", 404),
        ("GET", "/admin/v1/keys", 404),
        ("POST", "/uplion.openai.v1.OpenAIService/CreateChatCompletion", 404),
        ("POST", "/uplion.inference.v1.InferenceService/Chat", 415),  # JSON has no business there
        ("POST", "/uplion.control.v1.KeyService/CreateKey", 404),
        ("POST", "/grpc.health.v1.Health/Check", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("PUT", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models/m", 404),
        ("OPTIONS", "/v1/chat/completions", 405),
        ("TRACE", "/v1/models", 405),
        ("GET", "/v1/models/a%2Fb", 400),
        ("GET", "/v1/models/a%5cb", 400),
        ("GET", "/v1/models/..%2f..%2fadmin", 400),
        ("GET", "/v1/models/../../admin/v1/keys", 404),
        ("GET", "/v1/models/%2e%2e/%2e%2e/admin/v1/keys", 404),
        ("BREW", "/v1/models", 400),
    ],
)
def test_unknown_paths_and_methods_are_error_objects_and_reach_no_service(
    edge: Any, method: str, path: str, status: int
) -> None:
    reply = edge.request(method, path, b"{}" if method == "POST" else None)
    assert reply.status == status
    assert reply.error["type"] == "invalid_request_error"
    assert reply.headers["x-should-retry"] == "false"
    assert edge.authz.checks == []
    assert edge.backend.calls == []


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "identity, gzip"])
def test_compressed_bodies_are_refused_by_name(edge: Any, encoding: str) -> None:
    reply = edge.chat(b"\x1f\x8b", {"content-encoding": encoding})
    assert (reply.status, reply.error["code"]) == (415, "unsupported_content_encoding")
    assert edge.authz.checks == []


@pytest.mark.parametrize("headers", [[("x-big", "x" * 60_000)], [(f"x-{number}", "x") for number in range(300)]])
def test_too_large_and_too_many_headers_are_refused_without_a_check(edge: Any, headers: list[tuple[str, str]]) -> None:
    reply = edge.chat(None, dict(headers))
    assert (reply.status, reply.error["code"]) == (431, "headers_too_large")
    assert (reply.headers["x-should-retry"], reply.headers["x-request-id"] != "") == ("false", True)
    with edge.channel() as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary("/uplion.inference.v1.InferenceService/Chat")(b"", metadata=headers, timeout=60)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.value.details() == "The request headers are too large."
    assert edge.authz.checks == []


def test_an_empty_500_of_the_check_itself_is_an_error_object(edge: Any) -> None:
    """As of a mutation that Envoy does not make."""

    def broken(*_: object) -> auth.CheckResponse:
        response = auth.CheckResponse()
        option = response.ok_response.headers.add()
        option.header.key, option.header.value = "x-uplion-account", "a\nb"
        return response

    edge.authz.answer = broken
    reply = edge.chat()
    assert (reply.status, reply.error["code"]) == (500, "internal_error")
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD + b"content-length: 13\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + BEHIND,
        HEAD + b"content-length: 13\r\ncontent-length: 0\r\n\r\n" + CHAT,
        HEAD + b"content-length: +13\r\n\r\n" + CHAT,
        HEAD + b"content-length: 13\r\nx-a: b\x00c\r\n\r\n" + CHAT,
        HEAD + b"content-length: 13\r\nx a: b\r\n\r\n" + CHAT,
        HEAD + b"transfer-encoding: xchunked\r\n\r\n" + CHAT,
        HEAD + b"transfer-encoding: chunked\r\n\r\nZZ\r\n" + CHAT,
        b"CONNECT /v1/models HTTP/1.1\r\nhost: x\r\n" + KEY + b"\r\n",
        b"CONNECT upstream:80 HTTP/1.1\r\nhost: upstream:80\r\n" + KEY + b"\r\n",
        b"GET v1/models HTTP/1.1\r\nhost: x\r\n" + KEY + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\n" + KEY + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n" + KEY + b"\r\n",
    ],
)
def test_smuggling_and_odd_requests_are_refused_and_nothing_gets_behind(edge: Any, request_bytes: bytes) -> None:
    answer = edge.raw(request_bytes, seconds=1.0)
    status = answer[9:12]
    assert not answer or status.startswith(b"4") or status == b"501", answer
    assert edge.backend.calls == []
    assert edge.chat().status == 200


@pytest.mark.parametrize(
    "content_type", ["application/grpc-web", "application/grpc-web-text+proto", "application/json", "application/grpcx"]
)
@pytest.mark.parametrize("listener", ["public", "admin"])
def test_a_call_of_grpc_by_anything_else_is_told_what_to_do(edge: Any, content_type: str, listener: str) -> None:
    service = {"public": "uplion.inference.v1.InferenceService/Chat", "admin": "uplion.control.v1.KeyService/ListKeys"}
    port, headers = getattr(edge, listener), {"content-type": content_type}
    reply = edge.request("POST", f"/{service[listener]}", b"\0\0\0\0\0", headers, port=port)
    assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")
    assert "/v1" in reply.error["message"]
    reply = edge.request("OPTIONS", f"/{service[listener]}", port=port)
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
    assert edge.authz.checks == []


def test_a_folded_header_and_a_second_host_change_nothing(edge: Any) -> None:
    """Envoy takes both; the upstream gets one request, over HTTP/2, and nothing routes or decides by the host."""
    folded = HEAD + b"content-length: 13\r\nconnection: close\r\nx-a: b\r\n x-uplion-account: evil\r\n\r\n" + CHAT
    for request_bytes in (
        folded,
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nhost: y\r\nconnection: close\r\n" + KEY + b"\r\n",
    ):
        edge.backend.calls.clear()
        assert edge.raw(request_bytes)[9:12] in {b"200", b"400"}
        assert len(edge.backend.calls) <= 1
        for call in edge.backend.calls:
            assert call.all("x-uplion-account") == ["from-authz-account"]


def test_an_absolute_url_is_routed_and_judged_by_its_path(edge: Any) -> None:
    head = b"GET http://other/v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    answer = edge.raw(head + KEY + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert edge.authz.checks[-1].attributes.request.http.path == "/v1/models"
    assert edge.backend.calls[-1].method.endswith("/ListModels")


def test_slow_headers_and_slow_bodies_are_cut(edge: Any, impatient: int) -> None:
    """This edge allows 0.5 s for headers and 1 s for a request."""
    for start, status in ((b"POST /v1/chat", b"408"), (HEAD + b"content-length: 13\r\n\r\n{", b"408")):
        began = time.monotonic()
        answer = edge.raw(start, seconds=30.0, port=impatient)
        assert time.monotonic() - began < 25
        assert not answer or answer[9:12] == status, answer
    assert edge.backend.calls == []


def test_a_silent_stream_is_cut_after_its_idle_time(edge: Any, impatient: int) -> None:
    """This edge allows 2 s; the router's keep-alive comments come more often than the real 10 min."""
    over = threading.Event()

    def silent() -> Iterator[bytes]:
        over.wait(30)
        yield b""

    edge.backend.frames = silent
    began = time.monotonic()
    for _ in range(5):
        reply = edge.chat(port=impatient)
        if reply.status not in (408, 503):  # a body or a check that a busy machine brought too late for this edge
            break
    assert time.monotonic() - began > 1.5
    over.set()
    assert reply.status == 504
    assert reply.error["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model":"m","model":"n"}',
        b'{"model":"m","max_tokens":' + b"9" * 400 + b"}",
        b'{"model":"m","max_tokens":NaN}',
        b'{"model":"\xff\xfe"}',
        b"\x00" * 1000,
        b'{"' + b'a":1,"' * 100_000 + b'b":2}',
    ],
)
def test_no_body_harms_the_edge(edge: Any, body: bytes) -> None:
    """They are the router's to refuse; Envoy passes them on untouched, or refuses, and lives."""
    began = time.monotonic()
    reply = edge.chat(body)
    assert time.monotonic() - began < 20
    assert reply.status in {200, 400}
    if edge.backend.calls:
        assert edge.backend.calls[-1].body == body
    edge.authz.reset()
    assert edge.chat().status == 200
