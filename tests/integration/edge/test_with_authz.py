"""Envoy and the real authz together: what a client really sees of every decision."""

from collections.abc import Iterator
from typing import Any

import asyncpg
import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from authz.settings import AuthzSettings
from common.settings import dump
from control.schema.migrate import migrate
from credentials import api_keys
from tests.kit.proof import PROOF_KEYS
from tests.kit.services import ServiceProcess

CHAT = b'{"model":"m","max_tokens":5}'
NATIVE = "/uplion.inference.v1.InferenceService/Chat"


@pytest.fixture(scope="module")
def real(
    backends: Any,
    postgres_url: str,
    redis_url: str,
    nats_url: str,
    another_edge: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[int, str, str]]:
    """The public port, a key without limits, and a key that may ask twice a minute."""
    import asyncio

    async def prepare() -> list[str]:
        connection = await asyncpg.connect(postgres_url)
        await connection.execute("CREATE SCHEMA IF NOT EXISTS public")
        await migrate(connection)
        await connection.execute("INSERT INTO accounts (id, name) VALUES ('edge-test', 'x')")
        texts = []
        for limits in ("[]", '[{"measure": "requests", "period": "minute", "amount": 2}]'):
            key = api_keys.generate()
            await connection.execute(
                "INSERT INTO keys (id, account, scopes, limits, digest, pepper_id, last_four)"
                " VALUES ($1, 'edge-test', '{inference}', $2, $3, 'p1', 'abcd')",
                key.id,
                limits,
                api_keys.digest(key.secret, b"test pepper"),
            )
            texts.append(key.text)
        await connection.close()
        return texts

    texts = asyncio.run(prepare())
    settings = AuthzSettings(
        postgres_url=postgres_url,
        redis_url=redis_url,
        nats_url=nats_url,
        peppers=("p1:test pepper",),
        proof_keys=PROOF_KEYS,
        limits_seconds=10.0,
        lookup_seconds=10.0,
    )
    process = ServiceProcess("authz", environment=dump(settings), folder=tmp_path_factory.mktemp("authz"))
    envoy = another_edge(process.port("authz"), backends[2])
    yield envoy.ports["public"], texts[0], texts[1]
    envoy.stop()
    process.stop()


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}", "content-type": "application/json"}


@pytest.mark.parametrize("head", ["Bearer  ", "bearer ", "BEARER    "])
def test_one_blank_or_more_follow_the_scheme(edge: Any, real: Any, head: str) -> None:
    port, key, _ = real
    for tail in ("", "  "):
        reply = edge.request("POST", "/v1/chat/completions", CHAT, {"authorization": f"{head}{key}{tail}"}, port=port)
        assert reply.status == 200
        assert not [pair for pair in edge.backend.calls[-1].metadata if key in pair[1]]


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
def test_each_way_to_show_a_key_opens(edge: Any, real: Any, header: str) -> None:
    port, key, _ = real
    value = f"Bearer {key}" if header == "authorization" else key
    reply = edge.request("POST", "/v1/chat/completions", CHAT, {header: value}, port=port)
    assert reply.status == 200
    call = edge.backend.calls[-1]
    assert call.all("x-uplion-account") == ["edge-test"]
    assert call.all("x-uplion-model") == ["m"]
    assert call.all("x-uplion-reservation")[0]
    assert not [pair for pair in call.metadata if key in pair[1]]


def test_bad_credentials_are_401_error_objects(edge: Any, real: Any) -> None:
    port, key, _ = real
    bad: list[dict[str, str]] = [
        {},
        bearer(key + "x"),
        bearer(f"{key},{key}"),
        bearer(f"{key} {key}"),
        bearer(f"\t{key}"),
        bearer(f"x {key}"),
        bearer("x" * 16_384),
        {"authorization": key},
        {"authorization": f"Basic {key}"},
        {"authorization": f"Bearer {key}", "x-api-key": "other"},
    ]
    for headers in bad:
        reply = edge.request("POST", "/v1/chat/completions", CHAT, headers, port=port, key=None)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key"), headers
        assert reply.headers["x-should-retry"] == "false"
    assert edge.backend.calls == []


@pytest.mark.parametrize("lines", ["{a}{a}", "{a}x-api-key: other\r\n", "authorization: Bearer {key}\x00\r\n"])
def test_repeated_and_broken_credential_lines_open_nothing(edge: Any, real: Any, lines: str) -> None:
    import socket

    port, key, _ = real
    text = lines.replace("{a}", f"authorization: Bearer {key}\r\n").replace("{key}", key)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(CHAT)}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
        wire.sendall(head.encode() + text.encode() + b"\r\n" + CHAT)
        answer = b""
        while chunk := wire.recv(65536):
            answer += chunk
    assert answer[9:12] in {b"401", b"400"}, answer
    assert edge.backend.calls == []


def test_the_request_limit_is_in_answers_before_and_when_it_is_reached(edge: Any, real: Any) -> None:
    port, _, limited = real
    replies = [edge.request("POST", "/v1/chat/completions", CHAT, bearer(limited), port=port) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert replies[0].headers["x-ratelimit-limit-requests"] == "2"
    assert replies[0].headers["x-ratelimit-remaining-requests"] == "1"
    assert replies[2].error["code"] == "rate_limit_exceeded"
    assert int(replies[2].headers["retry-after-ms"]) > 1000
    assert replies[2].headers["x-should-retry"] == "true"
    with edge.channel(port) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(NATIVE)(b"", metadata=(("authorization", f"Bearer {limited}"),), timeout=60)
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    details = _details(refusal.value)
    assert details[0].reason == "RATE_LIMIT_EXCEEDED"
    assert details[1].retry_delay.seconds > 1


def _details(error: Any) -> list[Any]:
    status = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    found: list[Any] = []
    for detail in status.details:
        for kind in (ErrorInfo, RetryInfo):
            if detail.Is(kind.DESCRIPTOR):
                message = kind()
                detail.Unpack(message)
                found.append(message)
    return found


def test_native_denials_are_proper_statuses(edge: Any, real: Any) -> None:
    port, key, _ = real
    with edge.channel(port, key=False) as channel:
        call = channel.unary_unary(NATIVE)
        with pytest.raises(grpc.RpcError) as refusal:
            call(b"", timeout=60)
        assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert refusal.value.details() == "No key was given. Send it as: Authorization: Bearer <key>."
        assert _details(refusal.value)[0].reason == "INVALID_API_KEY"
        edge.backend.frames = lambda: iter([b"fine"])
        metadata = (("authorization", f"Bearer {key}"), ("x-uplion-model", "org/m"))
        assert call(b"", metadata=metadata, timeout=60) == b"fine"
    assert edge.backend.calls[-1].all("x-uplion-model") == ["org/m"]


@pytest.mark.parametrize(
    "body", ['{"model":"é"}'.encode(), b'{"model":"a\\r\\nb"}', b'{"model":"' + b"x" * 300 + b'"}']
)
def test_a_model_name_no_header_can_hold_is_400(edge: Any, real: Any, body: bytes) -> None:
    port, key, _ = real
    reply = edge.request("POST", "/v1/chat/completions", body, bearer(key), port=port)
    if reply.status == 200:  # Envoy itself would not put it into a header: the router sees none, and refuses
        assert edge.backend.calls[-1].all("x-uplion-model") == [""]
    else:
        assert (reply.status, reply.error["code"]) == (400, "invalid_value")
