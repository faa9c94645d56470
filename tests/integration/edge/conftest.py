"""One real Envoy for the module, between a scripted authz and a recording backend."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import envoy as envoy_wheel
import grpc
import pytest
from envoy.service.auth.v3 import external_auth_pb2 as auth
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.json_format import MessageToDict

from common.credentials import HEADERS as CREDENTIALS
from common.keys import TEST_KEY
from edge.settings import EdgeSettings

_START_SECONDS = 60.0
_PATIENCE_SECONDS = 60.0  # a wait that only a failure makes this long


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

    def reset(self) -> None:
        self.calls.clear()
        self.initial = []
        self.frames = None
        self.abort = None

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
        """What the last check was told of the body."""
        found = self.checks[-1].attributes.metadata_context.filter_metadata
        return MessageToDict(found["uplion.request"]) if "uplion.request" in found else {}

    def check(self, request: auth.CheckRequest, context: grpc.ServicerContext) -> auth.CheckResponse:
        self.checks.append(request)
        self.listeners.append(dict(context.invocation_metadata()).get("x-uplion-listener", ""))
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


@dataclass
class Reply:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/json", (self.headers, self.body)
        found = json.loads(self.body)["error"]
        assert set(found) == {"message", "type", "param", "code"}
        assert found["message"]
        return dict(found)


class _ShowsKey(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]
    """A native caller with a well-formed key, unless it shows one itself."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = list(details.metadata or ())
        if not {name for name, _ in metadata} & set(CREDENTIALS):
            metadata.append(("authorization", f"Bearer {TEST_KEY}"))
        return continuation(details._replace(metadata=metadata), request)

    intercept_unary_stream = intercept_unary_unary


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
        """Shows `key` unless the headers show one already."""
        headers = dict(headers or {})
        if key is not None and not {name.lower() for name in headers} & set(CREDENTIALS):
            headers["authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection("127.0.0.1", port or self.public, timeout=_PATIENCE_SECONDS)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def chat(self, body: object = None, headers: dict[str, str] | None = None, *, port: int | None = None) -> Reply:
        content = {"model": "m", "messages": []} if body is None else body
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.request(
            "POST", "/v1/chat/completions", payload, {"content-type": "application/json", **(headers or {})}, port=port
        )

    def raw(self, data: bytes, *, seconds: float = _PATIENCE_SECONDS, port: int | None = None) -> bytes:
        """Bytes in, bytes out, until Envoy closes, or is silent for so many seconds."""
        with socket.create_connection(("127.0.0.1", port or self.public), timeout=seconds) as connection:
            connection.sendall(data)
            received = b""
            try:
                while chunk := connection.recv(65536):
                    received += chunk
            except TimeoutError:
                pass
            return received

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

    server = grpc.server(ThreadPoolExecutor(8), handlers=(Generic(),), options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def envoy_binary() -> str:
    found = Path(envoy_wheel.__path__[0]) / "_bin" / "envoy"
    return str(found) if found.exists() else str(shutil.which("envoy"))


class EdgeProcess:
    """Starts Envoy with the real, rendered bootstrap; ends it by its pid."""

    def __init__(self, settings: EdgeSettings, folder: Path, cache: Path) -> None:
        rendered = subprocess.run(
            [sys.executable, "-m", "edge", "--stdin", "--cache", str(cache)],
            input=json.dumps(asdict(settings)),
            capture_output=True,
            text=True,
            check=True,
        )
        bootstrap, self._log = folder / "bootstrap.json", folder / "envoy.log"
        bootstrap.write_text(rendered.stdout)
        admin_file = folder / "admin"
        command = [
            envoy_binary(),
            "-c",
            str(bootstrap),
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--file-flush-interval-msec",
            "100",
        ]
        command += ["--admin-address-path", str(admin_file), "--log-level", "warning", "--log-path", str(self._log)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.envoy_admin = 0
        self.ports: dict[str, int] = {}
        deadline = time.monotonic() + _START_SECONDS
        while not self.ports:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Envoy did not start:\n{self._log.read_text()[-4000:]}")
            time.sleep(0.02)
            if admin_file.exists() and ":" in admin_file.read_text():
                self.envoy_admin = int(admin_file.read_text().rpartition(":")[2])
                self.ports = self._listeners()

    def page(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.envoy_admin, timeout=_START_SECONDS)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def _listeners(self) -> dict[str, int]:
        try:
            if self.page("/ready").strip() != "LIVE":
                return {}
            found = json.loads(self.page("/listeners?format=json"))["listener_statuses"]
        except (OSError, KeyError):
            return {}
        return {each["name"]: each["local_address"]["socket_address"]["port_value"] for each in found}

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def edge_settings(authz_port: int, service_port: int, folder: Path, **changes: Any) -> EdgeSettings:
    """A small body, so that its limit is quickly reached, and waits that no busy machine reaches.

    One template serves every Envoy of the session that keeps to these.
    """
    service = (f"127.0.0.1:{service_port}",)
    settings = EdgeSettings(
        public_address="127.0.0.1:0",
        admin_address="127.0.0.1:0",
        envoy_admin_address="127.0.0.1:0",
        authz_endpoints=(f"127.0.0.1:{authz_port}",),
        router_endpoints=service,
        control_endpoints=service,
        max_body_bytes=1 << 20,
        authz_timeout_seconds=_PATIENCE_SECONDS,
        connect_timeout_seconds=_PATIENCE_SECONDS,
        request_headers_timeout_seconds=_PATIENCE_SECONDS,
        request_timeout_seconds=_PATIENCE_SECONDS,
        access_log_path=str(folder / "access.log"),
    )
    return replace(settings, **changes)


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
    """Starts one more Envoy, told where authz and the services are, and other settings; who calls it stops it."""

    def start(authz_port: int, service_port: int, **changes: Any) -> EdgeProcess:
        folder = tmp_path_factory.mktemp("edge")
        settings = edge_settings(authz_port, service_port, folder, **changes)
        return EdgeProcess(settings, folder, tmp_path_factory.getbasetemp())

    return start
