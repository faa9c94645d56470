"""Row S7 on one machine: another user gets nothing from any listener, file or process that is not meant for all."""

import json
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor

from tests.integration.security.open_sockets import OpenSockets, family, open_sockets
from tests.kit.platform import REPOSITORY
from tests.kit.stack import RunningStack, StartStack, manifest, start_stack
from tests.kit.until import until_sync

__all__ = ["manifest", "start_stack"]

STRANGER = 65534  # nobody
FORGED = (
    ("x-uplion-account", "default"),
    ("x-uplion-project", "default"),
    ("x-uplion-key", "aaaaaaaaaaaa"),
    ("x-uplion-reservation", "00000000-0000-0000-0000-000000000000"),
    ("x-uplion-model", "small"),
    ("x-uplion-tier", "default"),
    ("x-uplion-limits", "{}"),
    ("x-uplion-scopes", "admin"),
    ("x-request-id", "00000000-0000-0000-0000-000000000000"),
)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def methods() -> list[str]:
    """Every method of our contract, and of the services that gRPC servers have beside it."""
    found = ["/grpc.health.v1.Health/Check", "/envoy.service.auth.v3.Authorization/Check"]
    found.append("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    for path in sorted(REPOSITORY.glob("gen/uplion/*/v1/*_service_pb2.py")):
        name = path.relative_to(REPOSITORY / "gen").with_suffix("")
        __import__(".".join(name.parts))
        file: FileDescriptor = descriptor_pool.Default().FindFileByName(str(name).removesuffix("_pb2") + ".proto")
        for service in file.services_by_name.values():
            found += [f"/{service.full_name}/{method.name}" for method in service.methods]
    return found


def look(uid: int, stack: RunningStack, reachable: OpenSockets, pids: list[int]) -> dict[str, Any]:
    """What a user finds."""
    folders = {stack.settings.state, *(Path(path).parent for path in reachable.unix if path.startswith("/"))}
    files = [str(path) for folder in folders for path in (folder, *folder.rglob("*"))]
    wanted = {
        "uid": uid,
        "ports": sorted(reachable.tcp),
        "sockets": sorted(reachable.unix),
        "files": files,
        "pids": pids,
        "methods": methods(),
        "metadata": FORGED,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.security.stranger"],
        input=json.dumps(wanted),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["uid"] == uid
    return found


@pytest.fixture(scope="module")
def running(start_stack: StartStack) -> RunningStack:
    return start_stack(processes=2).until_ready()


@pytest.fixture(scope="module")
def pids(running: RunningStack) -> list[int]:
    return family(running.process.pid)


@pytest.fixture(scope="module")
def reachable(running: RunningStack, pids: list[int]) -> OpenSockets:
    """Once every socket is of a kind that we know."""

    def found() -> OpenSockets | None:
        sockets = open_sockets(pids)
        return None if sockets.unknown else sockets

    return until_sync(found, 60)


@pytest.fixture(scope="module")
def seen(running: RunningStack, reachable: OpenSockets, pids: list[int]) -> dict[str, Any]:
    return look(STRANGER, running, reachable, pids)


@pytest.fixture(scope="module")
def owner(running: RunningStack, reachable: OpenSockets, pids: list[int]) -> dict[str, Any]:
    """What our own user finds, which shows that the tries are right."""
    return look(os.geteuid(), running, OpenSockets({}, {}, reachable.unix, ()), [])


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def secrets(stack: RunningStack) -> Iterator[str]:
    """Every secret of the state folder, in each form it has."""
    kept = json.loads((stack.settings.state / "secrets.json").read_text())
    keys = json.loads((stack.settings.state / "keys.json").read_text())
    for text in [*kept.values(), *(value for value in keys.values() if str(value).startswith("upl_"))]:
        for part in str(text).split(","):
            yield part.rpartition(":")[2]
            yield urllib.parse.quote(part.rpartition(":")[2], safe="")


def test_only_what_must_be_is_a_tcp_port(running: RunningStack, reachable: OpenSockets) -> None:
    report = running.run()
    parts = report["parts"]
    expected = {_port(report["grpc_address"]), _port(report["admin_address"])}
    expected |= {_port(part["metrics_address"]) for part in parts if part["metrics_address"]}
    expected |= {_port(part["address"]) for part in parts if part["name"] in ("postgres", "valkey", "nats")}
    assert reachable.tcp.keys() == expected
    assert reachable.udp == {}
    services = [part for part in parts if part["services"] or part["name"].startswith("worker/")]
    assert len(services) == 6
    assert all(part["address"].removeprefix("unix:") in reachable.unix for part in services)


def test_sockets_are_in_a_folder_of_our_own(running: RunningStack, reachable: OpenSockets) -> None:
    assert len(reachable.unix) > 6
    assert not [path for path in reachable.unix if path.startswith("@")]
    (folder,) = {Path(path).parent for path in reachable.unix}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_uid == os.geteuid()


def test_a_stranger_enters_no_socket(seen: dict[str, Any], owner: dict[str, Any]) -> None:
    assert seen["sockets"]
    assert not [found for found in seen["sockets"].items() if found[1]]
    assert {tuple(calls.values()) for calls in seen["socket calls"].values()} == {("UNAVAILABLE",)}
    assert all(owner["sockets"].values())
    served = [path for path, calls in owner["socket calls"].items() if calls == {"/grpc.health.v1.Health/Check": "OK"}]
    assert sorted(Path(path).name for path in served) == [
        *("authz", "authz-2", "control", "router", "router-2", "worker-0")
    ]


def test_a_stranger_without_a_key_gets_nothing_from_any_port(running: RunningStack, seen: dict[str, Any]) -> None:
    report = running.run()
    metrics = {str(_port(part["metrics_address"])) for part in report["parts"] if part["metrics_address"]}
    doors = {str(_port(report["grpc_address"])), str(_port(report["admin_address"]))}
    for port, found in seen["ports"].items():
        for protocol in ("nats", "valkey", "postgres"):
            assert not found[protocol], (port, protocol, found[protocol])
        assert set(found["grpc"].values()) <= {
            *("UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "UNKNOWN", "INVALID_ARGUMENT"),
        }, (port, found["grpc"])
        if port in metrics:
            assert {status for status, _ in found["http"].values()} == {200}
            assert all(text.startswith("# HELP ") for _, text in found["http"].values())
        elif port in doors:
            assert {status for status, _ in found["http"].values()} <= {401, 404}
            assert 401 in {status for status, _ in found["http"].values()}
        else:
            assert found["http"] == {}, port
    text = json.dumps(seen["ports"])
    assert not [secret for secret in secrets(running) if secret in text]


def test_a_stranger_opens_no_file_and_sees_no_process(seen: dict[str, Any], owner: dict[str, Any]) -> None:
    assert seen["files"] == {}
    assert len(owner["files"]) > 50


def test_no_secret_is_on_a_command_line(running: RunningStack, seen: dict[str, Any]) -> None:
    lines = seen["command lines"]
    assert len(lines) > 8
    known = list(secrets(running))
    assert len(known) > 6
    assert not [(pid, line) for pid, line in lines.items() for secret in known if secret in line]
