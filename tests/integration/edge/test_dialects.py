"""An operation whose errors are Anthropic's: the edge's own answers, and what it makes of others', in that form."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from common.operations import OPERATIONS, Dialect
from edge.settings import EdgeSettings
from tests.kit.envoy import EdgeProcess, Reply, edge_settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # envoy-data-plane uses what pydantic has deprecated
    from edge.bootstrap import render

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CHAT = "/v1/chat/completions"
MODELS = "/v1/models/{model=**}"


def speaking_anthropic(settings: EdgeSettings, cache: Path) -> str:
    """The catalogue as if two of OpenAI's paths were of the other dialect; all others stay."""
    operations = [
        replace(each, dialect=Dialect.ANTHROPIC) if each.path in (CHAT, MODELS) else each for each in OPERATIONS
    ]
    return render(settings, operations)


@pytest.fixture(scope="module")
def port(backends: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("dialects")
    settings = edge_settings(backends[3], backends[2], folder)
    process = EdgeProcess(settings, folder, folder, speaking_anthropic)
    yield process.ports["public"]
    process.stop()


def assert_anthropic(reply: Reply, status: int, kind: str) -> str:
    """The error is in Anthropic's form; gives its message."""
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json"), reply.body
    body = json.loads(reply.body)
    assert (set(body), body["type"]) == ({"type", "error", "request_id"}, "error")
    assert (set(body["error"]), body["error"]["type"]) == ({"type", "message"}, kind)
    assert body["request_id"] == reply.headers["x-request-id"]
    message: str = body["error"]["message"]
    assert message
    assert "$" not in message
    return message


def test_a_missing_key(edge: Any, port: int) -> None:
    assert_anthropic(edge.request("POST", CHAT, b"{}", port=port, key=None), 401, "authentication_error")
    assert_anthropic(edge.request("POST", f"{CHAT}?beta=true", b"{}", port=port, key="x"), 401, "authentication_error")
    assert_anthropic(edge.request("GET", "/v1/models/a/b", port=port, key=None), 401, "authentication_error")
    assert edge.authz.checks == []


def test_the_edges_own_refusals(edge: Any, port: int) -> None:
    assert_anthropic(edge.request("DELETE", CHAT, port=port), 405, "invalid_request_error")
    compressed = edge.request("POST", CHAT, b"{}", {"content-encoding": "gzip"}, port=port)
    assert_anthropic(compressed, 415, "invalid_request_error")
    assert_anthropic(edge.chat(b"x" * (1 << 21), port=port), 413, "request_too_large")


def test_an_authz_that_cannot_decide(edge: Any, port: int) -> None:
    def fails(request: Any, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "canary")

    edge.authz.answer = fails
    reply = edge.chat(port=port)
    assert "canary" not in assert_anthropic(reply, 503, "overloaded_error")
    assert (reply.headers["x-should-retry"], reply.headers["retry-after"]) == ("true", "1")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400, "invalid_request_error"),
        (grpc.StatusCode.NOT_FOUND, 404, "not_found_error"),
        (grpc.StatusCode.UNAVAILABLE, 503, "overloaded_error"),
        (grpc.StatusCode.DATA_LOSS, 500, "api_error"),
    ],
)
def test_a_service_that_ends_with_a_bare_status(
    edge: Any, port: int, code: grpc.StatusCode, status: int, kind: str
) -> None:
    edge.backend.frames = None
    edge.backend.abort = (code, 'no "ä" $REQUEST_ID')
    body = json.loads(edge.chat(port=port).body)
    assert body["error"] == {"type": kind, "message": 'no "ä" $REQUEST_ID'}
    edge.backend.abort = (code, "")
    assert_anthropic(edge.chat(port=port), status, kind)


def test_other_routes_keep_their_dialect(edge: Any, port: int) -> None:
    for reply, status in (
        (edge.request("POST", "/v1/embeddings", b"{}", port=port, key=None), 401),
        (edge.request("GET", "/v1/embeddings", port=port), 405),
        (edge.request("GET", "/v1/nothing", port=port), 404),
        (edge.request("GET", "/v1/models", port=port, key=None), 401),
    ):
        assert (reply.status, reply.error["message"] != "") == (status, True)
    assert edge.chat(port=port).status == 200
