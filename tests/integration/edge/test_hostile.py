"""Rows I6 to I9 and S8, against Envoy with a backend that records what gets through."""

import contextlib
import random
import socket
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest

from common import names
from credentials.api_keys import TEST_KEY

CHAT = b'{"model":"m"}'
KEY = f"authorization: Bearer {TEST_KEY}\r\n".encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + KEY
GET = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + KEY + b"\r\n"
NATIVE = "/uplion.inference.v1.InferenceService/Chat"
INTERNAL = sorted({value for name, value in vars(names).items() if name.startswith("HEADER_") and value[-1] != "-"})
SEED = 20261121


def first(port: int, data: bytes) -> bytes:
    """The head of the answer to bytes that are sent; empty when the connection was ended without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
        received = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            wire.sendall(data)
            while b"\r\n\r\n" not in received and (chunk := wire.recv(65536)):
                received += chunk
        return received


def nothing_evil(edge: Any) -> None:
    for key, value in edge.backend.calls[-1].metadata:
        assert "evil" not in value, (key, value)
    headers = edge.authz.checks[-1].attributes.request.http.headers
    assert not [name for name in headers if "evil" in headers[name]]
    assert edge.authz.listeners[-1] in {"public", "admin"}


@pytest.mark.parametrize("name", INTERNAL)
@pytest.mark.parametrize("spelling", [str.lower, str.upper, str.title])
def test_i6_no_header_of_ours_can_be_a_clients(edge: Any, name: str, spelling: Any) -> None:
    """Once, twice and as a list, on both doors. A header added to `common.names` is in this test by itself."""
    line = f"{spelling(name)}: evil".encode()
    lines = line + b"\r\n" + line + b", evil2\r\nconnection: close\r\n"
    answer = first(edge.public, POST + lines + b"content-length: 13\r\n\r\n" + CHAT)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    nothing_evil(edge)
    admin = b"GET /admin/v1/keys HTTP/1.1\r\nhost: x\r\n" + KEY + lines + b"\r\n"
    edge.backend.frames = lambda: iter([b""])
    assert first(edge.admin, admin).startswith(b"HTTP/1.1 200")
    if name != names.HEADER_MODEL:  # the admin API knows no model, and authz overwrites it
        nothing_evil(edge)


def test_i6_nor_by_grpc(edge: Any) -> None:
    edge.backend.frames = lambda: iter([b""])
    spoofed = [(name, "evil") for name in INTERNAL if name != names.HEADER_MODEL]  # that one is a native caller's own
    with edge.channel() as channel:
        channel.unary_unary(NATIVE)(b"", metadata=[*spoofed, *spoofed], timeout=60)
    nothing_evil(edge)


@pytest.mark.parametrize("name", INTERNAL)
def test_i6_the_underscore_form_is_refused(edge: Any, name: str) -> None:
    line = name.replace("-", "_").encode() + b": evil\r\nconnection: close\r\n"
    assert first(edge.public, POST + line + b"content-length: 13\r\n\r\n" + CHAT).startswith(b"HTTP/1.1 400")
    assert edge.backend.calls == []


SMUGGLED = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n" + KEY + b"content-length: 13\r\n\r\n" + CHAT


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 13\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 13\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        b"transfer-encoding: identity, chunked, chunked\r\n",
        b"transfer-encoding: \x0bchunked\r\n",
        b"transfer-encoding: chunked;q=1\r\n",
        b"content-length: 13, 13\r\n",
        b"content-length: 13\r\ncontent-length: 13\r\n",
        b"content-length: 0\r\ncontent-length: 13\r\n",
        b"content-length : 13\r\n",
        b"content-length: -1\r\n",
        b"content-length: 0x0d\r\n",
        b"content-length: 1_3\r\n",
        b"content-length: 99999999999999999999\r\n",
        b"content-length:\r\n",
        b"x-a: b\ncontent-length: 13\r\n",
        b"x-a: b\rcontent-length: 13\r\n",
        b" x-a: b\r\ncontent-length: 13\r\n",
        b"x-a\x00: b\r\ncontent-length: 13\r\n",
        b": b\r\ncontent-length: 13\r\n",
        b"x-a\r\ncontent-length: 13\r\n",
    ],
)
def test_i7_a_body_of_two_lengths_is_one_request_or_none(edge: Any, head: bytes) -> None:
    """Each ends in a request to another route; what is smuggled would be the only one to get there."""
    body = b"0\r\n\r\n" if b"chunked" in head else CHAT
    answer = first(edge.public, POST + head + b"connection: close\r\n\r\n" + body + SMUGGLED)
    assert not answer or answer[9:12] in {b"400", b"401", b"501", b"413", b"408", b"200"}, answer
    assert len(edge.backend.calls) <= 1
    assert not [call for call in edge.backend.calls if call.method.endswith("CreateCompletion")]
    assert edge.chat().status == 200


@pytest.mark.parametrize(
    "chunks",
    [
        b"d\r\n" + CHAT + b"X0\r\n\r\n",
        b"d\n" + CHAT + b"\n0\n\n",
        b"0x0d\r\n" + CHAT + b"\r\n0\r\n\r\n",
        b"-d\r\n" + CHAT + b"\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\n" + CHAT,
    ],
)
def test_i7_chunks_that_are_none_go_nowhere(edge: Any, chunks: bytes) -> None:
    head = b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    answer = first(edge.public, POST + head + chunks + SMUGGLED)
    assert not answer or answer[9:12] in {b"400", b"413", b"431"}, answer
    assert edge.backend.calls == []


def over_http2(edge: Any, headers: list[tuple[str, str]], data: bytes) -> str:
    """The status of one request; "cut" when its stream or connection was ended instead."""
    config = h2.config.H2Configuration(
        header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
    )
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    connection.send_headers(1, headers)
    connection.send_data(1, data, end_stream=True)
    with socket.create_connection(("127.0.0.1", edge.public), timeout=60) as wire:
        while True:
            wire.sendall(connection.data_to_send())
            received = wire.recv(65536)
            if not received:
                return "cut"
            for event in connection.receive_data(received):
                if isinstance(event, h2.events.ResponseReceived):
                    return str({str(name): value for name, value in event.headers}[":status"])
                if isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                    return "cut"


PSEUDO = [(":method", "POST"), (":path", "/v1/chat/completions"), (":scheme", "http"), (":authority", "x")]
SHOWN = ("authorization", f"Bearer {TEST_KEY}")


@pytest.mark.parametrize(
    "headers",
    [
        [*PSEUDO, SHOWN, ("content-length", "5")],
        [*PSEUDO, SHOWN, ("content-length", "50")],
        [*PSEUDO, SHOWN, ("content-length", "13"), ("content-length", "14")],
        [*PSEUDO, SHOWN, ("transfer-encoding", "chunked")],
        [*PSEUDO, SHOWN, ("connection", "keep-alive")],
        [*PSEUDO, SHOWN, ("x-a", "b\r\nx-uplion-account: evil")],
        [*PSEUDO, SHOWN, ("x-a", "b\nc")],
        [*PSEUDO, SHOWN, ("x-a", "b\x00c")],
        [*PSEUDO, SHOWN, ("x-a: b\r\nx-c", "d")],
        [*PSEUDO, SHOWN, ("X-Upper", "b")],
        [*PSEUDO, (":path", "/v1/completions"), SHOWN],
        [*PSEUDO[:3], SHOWN, (":authority", "x")],
        [(":method", "POST"), (":path", "/v1/chat/completions HTTP/1.1\r\nhost: y"), *PSEUDO[2:], SHOWN],
        [(":method", "POST /v1/completions"), *PSEUDO[1:], SHOWN],
        [(":method", "CONNECT"), (":authority", "x"), SHOWN],
        [(":method", "POST"), (":path", ""), *PSEUDO[2:], SHOWN],
        [(":method", "POST"), (":path", "v1/chat/completions"), *PSEUDO[2:], SHOWN],
        [(":method", "POST"), *PSEUDO[2:], SHOWN],
    ],
)
def test_i7_http2_requests_that_another_protocol_would_read_differently(
    edge: Any, headers: list[tuple[str, str]]
) -> None:
    assert over_http2(edge, headers, CHAT) in {"cut", "400", "404", "405"}
    assert edge.backend.calls == []
    assert over_http2(edge, [*PSEUDO, SHOWN], CHAT) == "200"


ROUTED = {
    "/v1/chat/completions": "CreateChatCompletion",
    "/v1/completions": "CreateCompletion",
    "/v1/embeddings": "CreateEmbedding",
}


def test_i8_what_authz_judges_is_what_is_routed(edge: Any) -> None:
    """Whatever is done to a path, it is refused, or authz and the router were asked about the very same thing."""
    noise = random.Random(SEED)
    pieces = ["/", "//", "/./", "/../", "%2f", "%2F", "%2e", "%2E%2e", ";x", "?", "#", "\\", "%5c", "%00", "%25", "%"]
    pieces += ["v1", "chat", "completions", "admin", "embeddings", "..", ".", "*", "%c0%af", "%ff", "http://y/", "@"]
    passed = 0
    for _ in range(400):
        path = noise.choice(list(ROUTED))
        for _ in range(noise.randrange(4)):
            place = noise.randrange(len(path) + 1)
            path = path[:place] + noise.choice(pieces) + path[place + noise.randrange(2) :]
        edge.backend.calls.clear()
        edge.authz.checks.clear()
        line = b"POST " + path.encode() + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        answer = first(edge.public, line + KEY + b"content-length: 13\r\n\r\n" + CHAT)
        status = answer[9:12]
        if not edge.backend.calls:
            assert not answer or status[:1] == b"4", (SEED, path, answer)
            continue
        passed += 1
        judged = edge.authz.checks[-1].attributes.request.http.path.partition("?")[0]
        assert edge.backend.calls[-1].method.rpartition("/")[2] == ROUTED[judged], (SEED, path, judged)
    assert passed > 20


@pytest.mark.parametrize(
    "verb", ["OPTIONS", "HEAD", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND", "get", "P"]
)
def test_i8_another_verb_goes_nowhere(edge: Any, verb: str) -> None:
    answer = first(
        edge.public,
        verb.encode() + b" /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + KEY + b"\r\n",
    )
    assert not answer or answer[9:10] == b"4", answer
    assert edge.backend.calls == []


@pytest.mark.parametrize(
    "host",
    [
        b"127.0.0.1:8080",
        b"internal:9901",
        b"user:password@x",
        b"x#fragment",
        b"x/v1/../admin",
        b"x?y=z",
        b"a, b",
        b"[::1]:1",
        b"x y",
        b"127.0.0.1\t",
        b"%31",
        b"..",
        b"x" * 2000,
    ],
)
def test_i9_the_host_decides_nothing(edge: Any, host: bytes) -> None:
    """No virtual host, no route and no answer depends on it, and no URL is made of it."""
    answer = first(
        edge.public, b"GET /v1/models HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n" + KEY + b"\r\n"
    )
    assert answer[9:12] in {b"200", b"400"}, answer
    assert host not in answer
    if answer[9:12] == b"200":
        assert edge.authz.checks[-1].attributes.request.http.path == "/v1/models"
        assert edge.backend.calls[-1].method.endswith("/ListModels")
    assert (
        first(
            edge.public, b"GET /admin/v1/keys HTTP/1.1\r\nhost: " + host + b"\r\nconnection: close\r\n" + KEY + b"\r\n"
        )[9:10]
        == b"4"
    )


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/stats",
        "/stats/prometheus",
        "/config_dump",
        "/ready",
        "/quitquitquit",
        "/server_info",
        "/clusters",
        "/logging",
        "/debug/pprof",
        "/healthz",
        "/health",
        "/admin",
        "/admin/v1/keys",
        "/varz",
        "/jsz",
    ],
)
@pytest.mark.parametrize("verb", ["GET", "POST"])
def test_s8_no_inner_page_is_at_the_public_door(edge: Any, path: str, verb: str) -> None:
    reply = edge.request(verb, path)
    assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert (edge.authz.checks, edge.backend.calls) == ([], [])
