"""HTTP/1.0, which Debian's nginx speaks to what it stands in front of."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from google.api.httpbody_pb2 import HttpBody

from credentials.api_keys import TEST_KEY

CHAT = b'{"model":"m","stream":true}'
KEY = f"Authorization: Bearer {TEST_KEY}\r\n".encode()
# As nginx 1.22 writes them for `proxy_pass http://127.0.0.1:8080`, with and without `proxy_set_header Host`.
HEADS = [
    b"POST /v1/chat/completions HTTP/1.0\r\nHost: 127.0.0.1:8080\r\nConnection: close\r\n",
    b"POST /v1/chat/completions HTTP/1.0\r\nHost: api.example.com\r\nConnection: close\r\n",
    b"POST /v1/chat/completions HTTP/1.0\r\n",
    b"POST /v1/chat/completions HTTP/1.0\r\nConnection: keep-alive\r\n",
]


def sent(head: bytes) -> bytes:
    return head + KEY + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(CHAT) + CHAT


def read_to_the_end(wire: socket.socket) -> bytes:
    found = b""
    while chunk := wire.recv(65536):
        found += chunk
    return found


@pytest.mark.parametrize("head", HEADS)
def test_an_answer_is_whole_and_ends_with_the_connection(edge: Any, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", edge.public), timeout=60) as wire:
        wire.sendall(sent(head))
        answer, _, body = read_to_the_end(wire).partition(b"\r\n\r\n")
    assert answer.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200"))
    assert b"transfer-encoding" not in answer.lower()
    assert body == b'{"ok":true}'
    assert edge.backend.calls[-1].body == CHAT


@pytest.mark.parametrize("head", HEADS)
def test_a_stream_comes_as_it_is_made(edge: Any, head: bytes) -> None:
    seen = threading.Event()

    def frames() -> Iterator[bytes]:
        yield HttpBody(content_type="text/event-stream", data=b"data: 1\n\n").SerializeToString()
        assert seen.wait(60)
        yield HttpBody(data=b"data: [DONE]\n\n").SerializeToString()

    edge.backend.frames = frames
    with socket.create_connection(("127.0.0.1", edge.public), timeout=60) as wire:
        wire.sendall(sent(head))
        found = b""
        while b"data: 1\n\n" not in found:
            chunk = wire.recv(65536)
            assert chunk, found
            found += chunk
        seen.set()
        rest = read_to_the_end(wire)
    assert b"x-accel-buffering: no" in found  # nginx would keep the stream to itself
    assert (found + rest).partition(b"\r\n\r\n")[2] == b"data: 1\n\ndata: [DONE]\n\n"


def test_errors_are_error_objects_with_an_id(edge: Any) -> None:
    for path, status in ((b"/nope", b"404"), (b"/v1/models/a%2fb", b"400")):
        answer = edge.raw(b"GET " + path + b" HTTP/1.0\r\n" + KEY + b"\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head[9:12] == status
        assert b"x-request-id: " in head
        assert json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "framing",
    [
        b"Transfer-Encoding: chunked\r\n\r\n1b\r\n" + CHAT + b"\r\n0\r\n\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + CHAT,
    ],
)
def test_nothing_is_smuggled_by_it(edge: Any, framing: bytes) -> None:
    behind = b"GET /v1/models HTTP/1.0\r\n" + KEY + b"\r\n"
    answer = edge.raw(HEADS[3] + KEY + framing + behind)
    assert answer.count(b"HTTP/1.") <= 1
    assert [call.method.rpartition("/")[2] for call in edge.backend.calls] in ([], ["CreateChatCompletion"])
