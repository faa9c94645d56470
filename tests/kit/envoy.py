"""A real Envoy with the real, rendered bootstrap, and what a client says to it."""

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import envoy as envoy_wheel

from credentials.api_keys import TEST_KEY
from credentials.headers import HEADERS as CREDENTIALS
from edge.settings import EdgeSettings
from tests.kit.until import until_sync

PATIENCE_SECONDS = 60.0  # a wait that only a failure makes this long
_START_SECONDS = 60.0


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


def request(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    *,
    key: str | None = TEST_KEY,
) -> Reply:
    """Shows `key` unless the headers show one already."""
    headers = dict(headers or {})
    if key is not None and not {name.lower() for name in headers} & set(CREDENTIALS):
        headers["authorization"] = f"Bearer {key}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # answered before all of it was sent
            connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def raw(port: int, data: bytes, *, seconds: float = PATIENCE_SECONDS) -> bytes:
    """Bytes in, bytes out, until Envoy closes, or is silent for so many seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(data)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except TimeoutError:
            pass
        return received


def envoy_binary() -> str:
    found = Path(envoy_wheel.__path__[0]) / "_bin" / "envoy"
    return str(found) if found.exists() else str(shutil.which("envoy"))


def rendered(settings: EdgeSettings, cache: Path) -> str:
    """The bootstrap, as `python -m edge` prints it."""
    return subprocess.run(
        [sys.executable, "-m", "edge", "--stdin", "--cache", str(cache)],
        input=json.dumps(asdict(settings)),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


class EdgeProcess:
    """Starts Envoy with the real, rendered bootstrap; ends it by its pid."""

    def __init__(
        self,
        settings: EdgeSettings,
        folder: Path,
        cache: Path,
        render: Callable[[EdgeSettings, Path], str] = rendered,
    ) -> None:
        bootstrap, self._log = folder / "bootstrap.json", folder / "envoy.log"
        bootstrap.write_text(render(settings, cache))
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

        def listeners() -> dict[str, int]:
            assert self.process.poll() is None, f"Envoy did not start:\n{self._log.read_text()[-4000:]}"
            if admin_file.exists() and ":" in admin_file.read_text():
                self.envoy_admin = int(admin_file.read_text().rpartition(":")[2])
                return self._listeners()
            return {}

        self.ports: dict[str, int] = until_sync(listeners, _START_SECONDS)

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
        authz_timeout_seconds=PATIENCE_SECONDS,
        connect_timeout_seconds=PATIENCE_SECONDS,
        request_headers_timeout_seconds=PATIENCE_SECONDS,
        request_timeout_seconds=PATIENCE_SECONDS,
        access_log_path=str(folder / "access.log"),
    )
    return replace(settings, **changes)
