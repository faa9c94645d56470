"""Properties 1 to 4 of the edge against the real Envoy: exact bytes both ways, honest statuses, unforged headers."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
from google.api.httpbody_pb2 import HttpBody
from uplion.openai.v1.openai_service_pb2 import GetModelRequest

from credentials.api_keys import TEST_KEY
from tests.kit.until import until_sync

IDENTITY = ("account", "key", "reservation", "tier", "limits")


def sse(*frames: bytes) -> tuple[bytes, ...]:
    return tuple(b"data: " + frame + b"\n\n" for frame in frames)


def test_the_body_reaches_the_router_byte_for_byte(edge: Any) -> None:
    body = '{"model" : "m", "n":1e0,"x":null, "big":12345678901234567890, "é":"\\ud83d\\ude00"}'.encode()
    assert edge.chat(body).status == 200
    call = edge.backend.calls[-1]
    assert call.method == "/uplion.openai.v1.OpenAIService/CreateChatCompletion"
    assert call.body == body


def test_facts_are_read_behind_a_byte_order_mark(edge: Any) -> None:
    body = b"\xef\xbb\xbf" + b'{"model":"m","max_tokens":7}'
    assert edge.chat(body).status == 200
    assert edge.authz.facts()["max_tokens"] == 7
    assert edge.backend.calls[-1].all("x-uplion-model") == ["m"]
    assert edge.backend.calls[-1].body == body


@pytest.mark.parametrize(
    "query", ["?model=b", "?model=b&model=c", "?model=%zz", "?model.x=1", "?api-version=1", "?", "?x?y"]
)
def test_a_query_changes_nothing(edge: Any, query: str) -> None:
    """No public operation has query parameters: the transcoder would put `model` over the path's."""
    for path, message in (
        ("/v1/models/a", GetModelRequest(model="a")),
        ("/v1/models/a/b", GetModelRequest(model="a/b")),
    ):
        assert edge.request("GET", path + query).status == 200
        assert edge.backend.calls[-1].payload == message.SerializeToString()
    for field in ("content_type", "data", "extensions.value", "body.data"):
        assert edge.request("POST", f"/v1/completions?{field}=eA", b'{"model":"m"}').status == 200
        assert edge.backend.calls[-1].body == b'{"model":"m"}'
    assert edge.request("GET", f"/v1/models{query}").status == 200


def test_the_answer_reaches_the_client_byte_for_byte(edge: Any) -> None:
    answer = b'{"a":null,"big":12345678901234567890,"unknown":{"x":[]}}'
    edge.backend.say(answer)
    reply = edge.chat()
    assert (reply.status, reply.body) == (200, answer)
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "path", "rpc"),
    [
        ("POST", "/v1/completions", "CreateCompletion"),
        ("POST", "/v1/embeddings", "CreateEmbedding"),
        ("GET", "/v1/models", "ListModels"),
        ("GET", "/v1/models?limit=3", "ListModels"),
        ("GET", "/v1/models/m", "GetModel"),
        ("GET", "/v1/models/org/m", "GetModel"),
        ("POST", "/v1/chat/completions?api-version=2024-10-21", "CreateChatCompletion"),
        ("POST", "/v1//chat/./x/../completions", "CreateChatCompletion"),
    ],
)
def test_each_route_is_its_method(edge: Any, method: str, path: str, rpc: str) -> None:
    body = b'{"model":"m"}' if method == "POST" else None
    assert edge.request(method, path, body, {"content-type": "application/json"}).status == 200
    assert edge.backend.calls[-1].method == f"/uplion.openai.v1.OpenAIService/{rpc}"
    if "/./" in path:
        assert edge.authz.checks[-1].attributes.request.http.path == "/v1/chat/completions"


def test_sse_frames_and_done_arrive_as_they_are_sent(edge: Any) -> None:
    frames = sse(b'{"choices":[]}', b'{"usage":null}', b"[DONE]")
    gates = [threading.Event() for _ in frames]

    def stream() -> Iterator[bytes]:
        for frame, gate in zip(frames, gates, strict=True):
            gate.wait(60)
            yield HttpBody(content_type="text/event-stream", data=frame).SerializeToString()

    edge.backend.frames = stream
    connection = http.client.HTTPConnection("127.0.0.1", edge.public, timeout=60)
    gates[0].set()
    shown = {"authorization": f"Bearer {TEST_KEY}"}
    connection.request("POST", "/v1/chat/completions", b'{"model":"m","stream":true}', shown)
    answer = connection.getresponse()
    assert answer.getheader("content-type") == "text/event-stream"
    for position, frame in enumerate(frames):
        gates[position].set()  # the next frame is not even made before this one was read
        assert answer.read1(65536) == frame
    assert answer.read() == b""
    connection.close()


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_the_router_chooses_the_status_with_a_header(edge: Any, status: int) -> None:
    error = json.dumps({"error": {"message": "x", "type": "t", "param": None, "code": "c"}}).encode()
    edge.backend.initial = [("x-uplion-status", str(status)), ("retry-after", "3")]
    edge.backend.say(error)
    reply = edge.chat()
    assert (reply.status, reply.body, reply.headers["retry-after"]) == (status, error, "3")
    assert "x-uplion-status" not in reply.headers


@pytest.mark.parametrize("status", ["", "abc", "99", "1000", "200; x"])
def test_a_senseless_status_header_changes_nothing(edge: Any, status: str) -> None:
    edge.backend.initial = [("x-uplion-status", status)]
    edge.backend.say(b"{}")
    assert edge.chat().status == 200


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, 503, "unavailable"),
        (grpc.StatusCode.INTERNAL, 500, "internal_error"),
        (grpc.StatusCode.UNIMPLEMENTED, 404, "not_found"),
        (grpc.StatusCode.UNKNOWN, 500, "internal_error"),
    ],
)
def test_a_bare_grpc_error_becomes_an_error_object(edge: Any, code: grpc.StatusCode, status: int, kind: str) -> None:
    edge.backend.frames = None
    edge.backend.abort = (code, 'it "broke"\n\\ é %')
    reply = edge.chat()
    assert reply.status == status
    assert reply.error["code"] == kind
    assert reply.error["message"] == 'it "broke"\n\\ é %'
    assert not [name for name in reply.headers if name.startswith("grpc-")]


def test_no_grpc_header_or_trailer_reaches_an_http2_client(edge: Any) -> None:
    """HTTP/2 clients would see the trailers that HTTP/1.1 drops."""
    for abort in (None, (grpc.StatusCode.INTERNAL, "late")):
        edge.backend.abort = abort
        edge.backend.say(*sse(b"1", b"[DONE]"), content_type="text/event-stream")
        headers, trailers, body = _http2_chat(edge.public)
        assert body.endswith(b"data: [DONE]\n\n")
        assert headers[":status"] == "200"
        assert not [name for name in {**headers, **trailers} if name.startswith(("grpc-", "x-uplion-"))], trailers


def _http2_chat(port: int) -> tuple[dict[str, str], dict[str, str], bytes]:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    pseudo = [(":method", "POST"), (":path", "/v1/chat/completions"), (":scheme", "http"), (":authority", "x")]
    connection.send_headers(1, [*pseudo, ("authorization", f"Bearer {TEST_KEY}")])
    connection.send_data(1, b'{"model":"m"}', end_stream=True)
    headers: dict[str, str] = {}
    trailers: dict[str, str] = {}
    body = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
        while True:
            wire.sendall(connection.data_to_send())
            for event in connection.receive_data(wire.recv(65536)):
                if isinstance(event, h2.events.ResponseReceived):
                    headers = {str(name): str(value) for name, value in event.headers}
                elif isinstance(event, h2.events.TrailersReceived):
                    trailers = {str(name): str(value) for name, value in event.headers}
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    return headers, trailers, body


def test_the_model_header_is_the_bodys_and_never_the_clients(edge: Any) -> None:
    assert edge.chat({"model": "org/name"}, {"x-uplion-model": "evil"}).status == 200
    assert edge.backend.calls[-1].all("x-uplion-model") == ["org/name"]
    assert edge.authz.checks[-1].attributes.request.http.headers["x-uplion-model"] == "org/name"


@pytest.mark.parametrize(
    "body", [b"{}", b"not json", b'{"model":3}', b'{"model":{"a":1}}', b"[]", b'{"model":""}', b""]
)
def test_without_a_model_in_the_body_the_clients_header_does_not_stand_in(edge: Any, body: bytes) -> None:
    edge.chat(body, {"x-uplion-model": "evil"})
    assert "evil" not in edge.backend.calls[-1].all("x-uplion-model")
    assert not edge.backend.calls[-1].all("x-uplion-model") or body == b'{"model":3}'


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded"]
)
def test_the_body_is_read_whatever_its_content_type_says(edge: Any, content_type: str) -> None:
    edge.chat({"model": "org/name"}, {"content-type": content_type, "x-uplion-model": "evil"})
    assert edge.backend.calls[-1].all("x-uplion-model") == ["org/name"]


def test_authz_gets_what_the_body_costs_and_nothing_of_its_text(edge: Any) -> None:
    edge.chat({"model": "m", "max_tokens": 5, "max_completion_tokens": 6, "n": 2, "messages": ["canary"]})
    assert edge.authz.facts() == {"model": "m", "max_tokens": 5.0, "max_completion_tokens": 6.0, "n": 2.0}
    assert b"canary" not in edge.authz.checks[-1].SerializeToString()
    assert edge.authz.listeners == ["public"]


@pytest.mark.parametrize("model", ["a\r\nx-uplion-account: evil", "a\x00b", "é", "\ud800", "x" * 5000])
def test_no_model_name_splits_a_header(edge: Any, model: str) -> None:
    """What could not travel is dropped by Envoy or refused by authz; this authz admits everything, the worst case."""
    reply = edge.chat({"model": model})
    for call in edge.backend.calls:
        assert call.all("x-uplion-account") == ["from-authz-account"]
    assert reply.status in {200, 400, 503}
    assert edge.chat().status == 200


SPOOFS = [
    *(f"x-uplion-{name}" for name in (*IDENTITY, "status", "listener", "foo", "m", "mode", "models", "modex", "")),
    "X-Uplion-Account",
    "X-UPLION-RESERVATION",
]


@pytest.mark.parametrize("name", SPOOFS)
def test_no_internal_header_of_a_client_gets_through(edge: Any, name: str) -> None:
    reply = edge.chat(None, {name: "evil"})
    assert reply.status == 200
    _assert_clean(edge)


def _assert_clean(edge: Any) -> None:
    for key, value in edge.backend.calls[-1].metadata:
        assert "evil" not in value, (key, value)
    headers = edge.authz.checks[-1].attributes.request.http.headers
    assert not [name for name in headers if "evil" in headers[name]]
    for name in IDENTITY:
        assert edge.backend.calls[-1].all(f"x-uplion-{name}") == [f"from-authz-{name}"]


def test_duplicates_and_underscores_get_nothing_through_either(edge: Any) -> None:
    key = f"authorization: Bearer {TEST_KEY}\r\n"
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 13\r\nconnection: close\r\n{key}"
    twice = "x-uplion-account: evil\r\nX-Uplion-Account: evil2\r\nx-uplion-key: evil, evil\r\nx-uplion-model: evil\r\n"
    assert edge.raw(f'{head}{twice}\r\n{{"model":"m"}}'.encode()).startswith(b"HTTP/1.1 200")
    _assert_clean(edge)
    calls = len(edge.backend.calls)
    refused = edge.raw(f'{head}x_uplion_account: evil\r\n\r\n{{"model":"m"}}'.encode())
    assert refused.startswith(b"HTTP/1.1 400")
    assert len(edge.backend.calls) == calls


def test_even_an_authz_that_sets_nothing_lets_no_client_header_through(edge: Any) -> None:
    from envoy.service.auth.v3 import external_auth_pb2 as auth

    def bare(*_: object) -> auth.CheckResponse:
        response = auth.CheckResponse()
        response.ok_response.SetInParent()
        return response

    edge.authz.answer = bare
    edge.chat(None, {"x-uplion-account": "evil", "x-uplion-key": "evil"})
    found = [name for name, _ in edge.backend.calls[-1].metadata if name.startswith("x-uplion-")]
    assert found == ["x-uplion-model"]


def test_the_request_id_is_ours_new_each_time_and_in_the_answer(edge: Any) -> None:
    seen = set()
    for _ in range(3):
        reply = edge.chat(None, {"x-request-id": "mine"})
        assert edge.backend.calls[-1].all("x-request-id") == [reply.headers["x-request-id"]]
        seen.add(reply.headers["x-request-id"])
    assert len(seen) == 3
    assert "mine" not in seen
    assert edge.request("GET", "/nope").headers["x-request-id"]


def test_the_credential_goes_to_authz_and_no_further(edge: Any) -> None:
    secret = TEST_KEY
    edge.chat(None, {"authorization": f"Bearer {secret}", "x-api-key": secret, "api-key": secret, "cookie": secret})
    assert edge.authz.checks[-1].attributes.request.http.headers["authorization"] == f"Bearer {secret}"
    assert not [pair for pair in edge.backend.calls[-1].metadata if secret in pair[1]]


def test_a_client_neither_steers_grpc_nor_envoy(edge: Any) -> None:
    edge.chat(
        None, {"grpc-timeout": "1n", "grpc-encoding": "gzip", "x-envoy-upstream-rq-timeout-ms": "1", "x-envoy-foo": "1"}
    )
    names = {name for name, _ in edge.backend.calls[-1].metadata}
    assert names & {"grpc-timeout", "grpc-encoding", "x-envoy-upstream-rq-timeout-ms", "x-envoy-foo"} == set()


def test_the_trace_context_passes_through(edge: Any) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    edge.chat(None, {"traceparent": parent, "tracestate": "a=b"})
    assert edge.backend.calls[-1].all("traceparent") == [parent]


def test_a_client_that_leaves_cancels_the_call(edge: Any) -> None:
    ended = threading.Event()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield HttpBody(content_type="text/event-stream", data=b": x\n\n").SerializeToString()
                time.sleep(0.02)
        finally:
            ended.set()

    edge.backend.frames = endless
    with socket.create_connection(("127.0.0.1", edge.public), timeout=60) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {TEST_KEY}\r\ncontent-length: 13\r\n\r\n"
        connection.sendall(head.encode() + b'{"model":"m"}')
        assert connection.recv(100)
    assert ended.wait(60)


def test_the_access_log_holds_facts_and_no_content(edge: Any) -> None:
    reply = edge.chat({"model": "m", "messages": ["canary-prompt"]}, {"cookie": "canary-cookie"})
    wanted = reply.headers["x-request-id"]

    def written() -> list[str]:
        return [each for each in edge.access_log.read_text().splitlines() if wanted in each]

    line = json.loads(until_sync(written)[0])  # Envoy flushes its log every 10 s, or sooner when it is long
    assert (line["status"], line["method"], line["account"]) == (200, "POST", "from-authz-account")
    assert "canary" not in edge.access_log.read_text()
    assert TEST_KEY not in edge.access_log.read_text()


def test_lua_never_failed(edge: Any) -> None:
    """A script error would be swallowed by Envoy: it counts it."""
    counters = edge.page("/stats?filter=lua.errors")
    assert counters
    assert all(line.endswith(": 0") for line in counters.splitlines()), counters
