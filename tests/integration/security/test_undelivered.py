"""A request that Envoy refuses after authz admitted it leaves no trace in its caller's limits."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3 import external_auth_pb2 as auth

from common import names
from credentials import api_keys
from stack.ports import free_port
from tests.kit.envoy import EdgeProcess, edge_settings, request
from tests.kit.gateway import PEPPER, Gateway
from tests.kit.until import until_sync

CHAT = b'{"model":"none","max_tokens":5,"messages":[{"role":"user","content":"x"}]}'
GOOD = 404  # admitted, and answered by the router: there is no model
FULL = 429
REFUSALS = 20


@pytest.fixture(scope="module")
def lonely(platform: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The public port of an Envoy that reaches authz and no router."""
    folder = tmp_path_factory.mktemp("lonely")
    settings = edge_settings(platform.authz.port("authz"), free_port(), folder)
    envoy = EdgeProcess(settings, folder, tmp_path_factory.getbasetemp())
    yield envoy.ports["public"]
    envoy.stop()


@pytest.fixture
def key(platform: Gateway) -> str:
    """Of a key that may have two requests at once."""
    key = api_keys.generate()
    platform.sql(
        "INSERT INTO keys (id, account, scopes, limits, digest, pepper_id, last_four)"
        " VALUES ($1, 'default', '{inference}', $2, $3, '1', 'abcd')",
        key.id,
        '[{"measure": "concurrency", "period": "", "amount": 2}]',
        api_keys.digest(key.secret, PEPPER.encode()),
    )
    return key.text


def chat(platform: Gateway, key: str, port: int | None = None, path: str = "/v1/chat/completions") -> Any:
    return request(port or platform.public, "POST", path, CHAT, {"content-type": "application/json"}, key=key)


def passes_again(platform: Gateway, key: str) -> None:
    """Both places are free: two calls that nobody ends for long come through."""
    until_sync(lambda: chat(platform, key).status == GOOD)


def test_a_router_that_cannot_be_reached(platform: Gateway, lonely: int, key: str) -> None:
    assert [chat(platform, key, lonely).status for _ in range(REFUSALS)] == [503, 503, *[FULL] * (REFUSALS - 2)]
    assert chat(platform, key).status == FULL
    passes_again(platform, key)


def test_an_answer_of_authz_that_came_to_nobody(platform: Gateway, key: str) -> None:
    """As of an Envoy that was killed, or waited no longer; and of a client that left between check and route."""
    check = auth.CheckRequest()
    http = check.attributes.request.http
    http.method, http.path, http.size = "POST", "/v1/chat/completions", len(CHAT)
    http.headers["authorization"] = f"Bearer {key}"
    http.headers[names.HEADER_MODEL] = "none"
    with grpc.insecure_channel(platform.authz.address) as channel:
        call: Any = channel.unary_unary(
            "/envoy.service.auth.v3.Authorization/Check",
            auth.CheckRequest.SerializeToString,
            auth.CheckResponse.FromString,
        )
        answers = [
            call(check, metadata=((names.HEADER_LISTENER, names.LISTENER_PUBLIC),), timeout=60) for _ in range(REFUSALS)
        ]
    assert [each.HasField("denied_response") for each in answers] == [False, False, *[True] * (REFUSALS - 2)]
    passes_again(platform, key)


@pytest.mark.parametrize("count", [80, 86, 90, 95, 100, 110, 200, 600])
def test_many_headers_are_served_or_refused_before_the_check(platform: Gateway, key: str, count: int) -> None:
    """authz adds a dozen of its own: the request must have room for them, or be refused first."""
    lines = "".join(f"x-many-{number}: 1\r\n" for number in range(count - 5))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
    body = f"content-type: application/json\r\ncontent-length: {len(CHAT)}\r\n{lines}\r\n"
    for _ in range(2):  # as many as may run at once: none waits for another's end
        status = platform.raw(head.encode() + body.encode() + CHAT)[9:12]
        assert status == (b"404" if count <= 100 else b"431")


@pytest.mark.parametrize(("size", "count"), [(30_000, 1), (300, 90), (34_000, 1), (4_000, 9), (400, 95), (120_000, 1)])
def test_large_headers_are_served_or_refused_before_the_check(
    platform: Gateway, key: str, size: int, count: int
) -> None:
    headers = {f"x-large-{number}": "1" * size for number in range(count)}
    for _ in range(2):  # as many as may run at once: none waits for another's end
        reply = request(platform.public, "POST", "/v1/chat/completions", CHAT, headers, key=key)
        assert reply.status == (GOOD if size * count < 32_000 else 431)
        assert reply.error["code"] == ("model_not_found" if reply.status == GOOD else "headers_too_large")
