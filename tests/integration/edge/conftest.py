"""One real Envoy for the module, between a scripted authz and a recording backend."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3 import external_auth_pb2 as auth
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.json_format import MessageToDict

from common.operations import FACTS_NAMESPACE
from credentials.api_keys import TEST_KEY
from credentials.headers import HEADERS as CREDENTIALS
from tests.kit.envoy import PATIENCE_SECONDS, EdgeProcess, Reply, edge_settings, raw, request


@dataclass
class Call:
    """What a backend saw of one request."""

    method: str
    metadata: list[tuple[str, str]]
    payload: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.metadata if key == name]

    @property
    def body(self) -> bytes:
        return HttpBody.FromString(self.payload).data


@dataclass
class Backend:
    """Records every call; a test scripts the answer: initial metadata, then frames, then perhaps a gRPC status."""

    calls: list[Call] = field(default_factory=list)
    initial: list[tuple[str, str]] = field(default_factory=list)
    frames: Callable[[], Iterator[bytes]] | None = None
    abort: tuple[grpc.StatusCode, str] | None = None
    trailing: tuple[tuple[str, str], ...] = ()

    def reset(self) -> None:
        self.calls.clear()
        self.initial = []
        self.frames = None
        self.abort = None
        self.trailing = ()

    def say(self, *frames: bytes, content_type: str = "application/json") -> None:
        """Answers with these HttpBody frames."""
        messages = [HttpBody(content_type=content_type, data=frame).SerializeToString() for frame in frames]
        self.frames = lambda: iter(messages)

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        def handle(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            metadata = [(key, value) for key, value in context.invocation_metadata() if isinstance(value, str)]
            self.calls.append(Call(call.method, metadata, request))
            if self.initial:
                context.send_initial_metadata(tuple(self.initial))
            if self.frames is not None:
                yield from self.frames()
            context.set_trailing_metadata(self.trailing)
            if self.abort is not None:
                context.abort(*self.abort)

        return grpc.unary_stream_rpc_method_handler(handle)


@dataclass
class Authz:
    """Answers Check as a test says; admits with identity headers by default."""

    checks: list[auth.CheckRequest] = field(default_factory=list)
    listeners: list[str] = field(default_factory=list)
    answer: Callable[[auth.CheckRequest, grpc.ServicerContext], auth.CheckResponse] | None = None

    def reset(self) -> None:
        self.checks.clear()
        self.listeners.clear()
        self.answer = None

    def facts(self) -> dict[str, Any]:
        """The body facts of the last check."""
        found = self.checks[-1].attributes.metadata_context.filter_metadata
        return MessageToDict(found[FACTS_NAMESPACE]) if FACTS_NAMESPACE in found else {}

    def check(self, request: auth.CheckRequest, context: grpc.ServicerContext) -> auth.CheckResponse:
        self.checks.append(request)
        self.listeners.append(str(dict(context.invocation_metadata()).get("x-uplion-listener", "")))
        if self.answer is not None:
            return self.answer(request, context)
        response = auth.CheckResponse()
        response.status.code = 0
        for name in ("account", "key", "reservation", "tier", "limits"):
            option = response.ok_response.headers.add()
            option.header.key, option.header.value = f"x-uplion-{name}", f"from-authz-{name}"
            option.append_action = 2
        response.ok_response.headers_to_remove.extend(["authorization", "x-api-key", "api-key"])
        return response


class _ShowsKey(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """A native caller with a well-formed key, unless it shows one itself."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = list(details.metadata or ())
        if not {name for name, _ in metadata} & set(CREDENTIALS):
            metadata.append(("authorization", f"Bearer {TEST_KEY}"))
        return continuation(details._replace(metadata=metadata), request)

    intercept_unary_stream: Any = intercept_unary_unary


@dataclass
class Edge:
    """The running Envoy, and how to talk to it."""

    public: int
    admin: int
    envoy_admin: int
    backend: Backend
    authz: Authz
    access_log: Path
    pid: int

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        port: int | None = None,
        key: str | None = TEST_KEY,
    ) -> Reply:
        return request(port or self.public, method, path, body, headers, key=key)

    def chat(self, body: object = None, headers: dict[str, str] | None = None, *, port: int | None = None) -> Reply:
        content = {"model": "m", "messages": []} if body is None else body
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.request(
            "POST", "/v1/chat/completions", payload, {"content-type": "application/json", **(headers or {})}, port=port
        )

    def raw(self, data: bytes, *, seconds: float = PATIENCE_SECONDS, port: int | None = None) -> bytes:
        return raw(port or self.public, data, seconds=seconds)

    def page(self, path: str) -> str:
        """A page of Envoy's own admin."""
        return self.request("GET", path, port=self.envoy_admin).body.decode()

    def channel(self, port: int | None = None, *, key: bool = True) -> grpc.Channel:
        channel = grpc.insecure_channel(f"127.0.0.1:{port or self.public}", options=[("grpc.enable_retries", 0)])
        return grpc.intercept_channel(channel, _ShowsKey()) if key else channel


def _serve(handler: Callable[[grpc.HandlerCallDetails], Any]) -> tuple[grpc.Server, int]:
    class Generic(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            return handler(handler_call_details)

    server = grpc.server(ThreadPoolExecutor(8), handlers=[Generic()], options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


@pytest.fixture(scope="session")
def backends() -> Iterator[tuple[Backend, Authz, int, int]]:
    """The recording backend and the scripted authz, and their ports."""
    backend, authz = Backend(), Authz()
    check = grpc.unary_unary_rpc_method_handler(
        authz.check, auth.CheckRequest.FromString, auth.CheckResponse.SerializeToString
    )
    serving, serving_port = _serve(backend.service)
    checking, checking_port = _serve(
        lambda call: check if call.method == "/envoy.service.auth.v3.Authorization/Check" else None
    )
    yield backend, authz, serving_port, checking_port
    threading.Thread(target=serving.stop, args=(0,)).start()
    serving.stop(0).wait(5)
    checking.stop(0).wait(5)


@pytest.fixture(scope="session")
def edge_process(backends: tuple[Backend, Authz, int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    backend, authz, serving_port, checking_port = backends
    folder = tmp_path_factory.mktemp("edge")
    settings = edge_settings(checking_port, serving_port, folder)
    process = EdgeProcess(settings, folder, tmp_path_factory.getbasetemp())
    ports = process.ports
    yield Edge(
        ports["public"], ports["admin"], process.envoy_admin, backend, authz, folder / "access.log", process.process.pid
    )
    process.stop()


@pytest.fixture
def edge(edge_process: Edge) -> Edge:
    """The shared Envoy, with the scripts of the last test forgotten."""
    edge_process.backend.reset()
    edge_process.authz.reset()
    edge_process.backend.say(b'{"ok":true}')
    return edge_process


@pytest.fixture(scope="session")
def another_edge(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EdgeProcess]:
    """Starts one more Envoy with these ports of authz and of the services, and other settings; the caller stops it."""

    def start(authz_port: int, service_port: int, **changes: Any) -> EdgeProcess:
        folder = tmp_path_factory.mktemp("edge")
        settings = edge_settings(authz_port, service_port, folder, **changes)
        return EdgeProcess(settings, folder, tmp_path_factory.getbasetemp())

    return start
