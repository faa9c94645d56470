"""What curl sees: bytes, headers and errors on the wire, behind the real Envoy."""

import json
import socket
from itertools import islice
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.kit.platform import DEMO, SYNTHETIC, Platform
from tests.kit.until import until_sync

HELLO = [{"role": "user", "content": "Hello!"}]


def _post(platform: Platform, body: object, path: str = "/chat/completions", **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(
        platform.facts["base_url"] + path,
        content=content,
        headers={
            "authorization": f"Bearer {platform.facts['api_key']}",
            "content-type": "application/json",
            **headers,
        },
        timeout=60,
    )


def test_tokens_arrive_one_by_one_and_end_in_done(platform: Platform) -> None:
    def stream(tokens: int, most: int) -> list[str]:
        """The data of at most so many frames."""
        with httpx2.stream(
            "POST",
            f"{platform.facts['base_url']}/chat/completions",
            json={"model": SYNTHETIC, "messages": HELLO, "stream": True, "max_tokens": tokens},
            headers={"authorization": f"Bearer {platform.facts['api_key']}"},
            timeout=60,
        ) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert not [name for name in answer.headers if name.startswith("grpc-")]
            return list(islice((line[6:] for line in answer.iter_lines() if line.startswith("data: ")), most))

    *chunks, end = stream(25, 100)
    assert end == "[DONE]"
    assert all(json.loads(chunk)["object"] == "chat.completion.chunk" for chunk in chunks)
    early = [json.loads(chunk) for chunk in stream(4000, 10)]  # at 50 a second: they do not wait for the end
    assert len(early) == 10
    assert not any(chunk["choices"][0]["finish_reason"] for chunk in early)


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
def test_a_key_is_taken_from_each_usual_header(platform: Platform, header: str) -> None:
    value = platform.facts["api_key"]
    answer = httpx2.get(
        f"{platform.facts['base_url']}/models",
        headers={header: f"Bearer {value}" if header == "authorization" else value},
        timeout=60,
    )
    assert answer.status_code == 200
    assert answer.headers["x-request-id"]


def test_errors_have_one_shape(platform: Platform) -> None:
    cases = [
        (_post(platform, b'{"model": '), 400),
        (_post(platform, b"[1,2]"), 400),
        (_post(platform, {"model": "none", "messages": HELLO}), 404),
        (_post(platform, {"model": DEMO, "messages": []}), 400),
        (_post(platform, {"model": DEMO, "messages": HELLO}, "/nothing/here"), 404),
        (_post(platform, {"model": DEMO, "messages": HELLO}, "/responses"), 404),
        (
            _post(platform, b'{"model":"' + DEMO.encode() + b'","model":"' + SYNTHETIC.encode() + b'","messages":[]}'),
            400,
        ),
        (_post(platform, b"x" * 6_000_000), 413),
        (_post(platform, {"model": DEMO, "messages": HELLO}, authorization="Bearer no"), 401),
        (
            _post(platform, {"model": DEMO, "messages": HELLO}, authorization=f"Bearer {platform.facts['admin_key']}"),
            403,
        ),
    ]
    for answer, status in cases:
        assert answer.status_code == status, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, answer.text
        assert answer.headers["content-type"].startswith("application/json")
        assert answer.headers["x-request-id"]
        assert not [name for name in answer.headers if name.startswith("grpc-")]


def test_hostile_json_is_refused_at_once(platform: Platform) -> None:
    prefix = b'{"model":"' + DEMO.encode() + b'","messages":'
    for body in (
        b"[" * 100_000,
        prefix + b"[" * 5_000 + b"]" * 5_000 + b"}",
        prefix + b'[{"role":"user","content":"\xff\xfe"}]}',
        prefix + b'[{"role":"user","content":"x"}],"temperature":NaN}',
        prefix + b'[{"role":"user","content":"x"}],"seed":' + b"9" * 400 + b"}",
        prefix + b'[{"role":"user","content":"\\ud800"}]}',
    ):
        answer = _post(platform, body)
        assert answer.status_code == 400, (body[:60], answer.text)
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_client_cannot_be_somebody_else(platform: Platform) -> None:
    answer = _post(
        platform,
        {"model": DEMO, "messages": HELLO, "max_tokens": 2},
        **{"x-uplion-account": "evil", "X-Uplion-Key": "evil", "x-uplion-model": "evil", "x-request-id": "evil"},
    )
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] != "evil"


def test_the_admin_api_is_on_its_own_listener_and_wants_an_admin_key(platform: Platform) -> None:
    url = platform.facts["admin_url"]
    admin = {"authorization": f"Bearer {platform.facts['admin_key']}"}
    listed = httpx2.get(f"{url}/keys", headers=admin, timeout=60)
    assert listed.status_code == 200
    assert listed.json()["keys"]
    assert platform.facts["api_key"] not in listed.text
    inference = {"authorization": f"Bearer {platform.facts['api_key']}"}
    assert httpx2.get(f"{url}/keys", headers=inference, timeout=60).status_code == 403
    assert httpx2.get(f"{url}/keys", timeout=60).status_code == 401
    assert httpx2.get(f"{platform.root_url}/admin/v1/keys", headers=admin, timeout=60).status_code in (403, 404)


def test_a_revoked_key_stops_long_before_its_record_is_a_minute_old(platform: Platform) -> None:
    created = platform.cli("keys", "create")
    url, headers = f"{platform.facts['base_url']}/models", {"authorization": f"Bearer {created['key']}"}
    assert httpx2.get(url, headers=headers, timeout=60).status_code == 200
    platform.cli("keys", "revoke", created["id"])
    until_sync(lambda: httpx2.get(url, headers=headers, timeout=60).status_code == 401, 30)


def test_smuggled_requests_are_refused(platform: Platform) -> None:
    parts = urlsplit(platform.root_url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {platform.facts['api_key']}\r\n"
    for extra in (
        "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
        "content-length: 4\r\ncontent-length: 5\r\n\r\nabcd",
    ):
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=60) as raw:
            raw.sendall((head + extra).encode())
            answer = raw.recv(65536)
            assert answer.startswith(b"HTTP/1.1 400"), answer
            assert answer.count(b"HTTP/1.1") == 1
