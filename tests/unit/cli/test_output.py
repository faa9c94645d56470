"""What the command prints, without anything running."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.local.lifecycle import summary
from cli.local.progress import PlainProgress
from cli.main import app
from stack.state import State

runner = CliRunner()
RUN = {
    "status": "ready",
    "pid": 10,
    "base_url": "http://127.0.0.1:1/v1",
    "grpc_address": "127.0.0.1:1",
    "admin_url": "http://127.0.0.1:2/admin/v1",
    "admin_address": "127.0.0.1:2",
    "state_dir": "/s",
    "postgres_url": "postgres://",
    "nats_url": "nats://",
    "redis_url": "redis://",
    "parts": [
        {"name": "nats", "services": [], "pid": 11},
        {"name": "billing-control", "services": ["billing", "control"], "pid": 12},
        {"name": "authz", "services": ["authz"], "pid": 13},
        {"name": "authz-2", "services": ["authz"], "pid": 15},
        {"name": "worker/m/0", "services": [], "pid": 14},
    ],
}


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / "state")
    made.create()
    made.write("keys.json", {"api_key": "upl_a", "admin_key": "upl_b"})
    return made


def test_up_as_json_has_what_programs_need(state: State) -> None:
    found = summary(state, RUN)
    assert set(found) >= {
        "base_url",
        "grpc_address",
        "api_key",
        "admin_key",
        "state_dir",
        "pids",
        "postgres_url",
        "nats_url",
        "redis_url",
    }
    assert found["pids"] == {
        "supervisor": 10,
        "nats": 11,
        "billing": 12,
        "control": 12,
        "authz": 13,
        "authz-2": 15,
        "worker/m/0": 14,
    }


@pytest.mark.parametrize(
    "arguments",
    [["keys", "list"], ["keys", "create"], ["models", "list"], ["usage"], ["chat", "hello"], ["keys", "revoke", "x"]],
)
def test_without_a_running_stack_commands_say_so(state: State, arguments: list[str]) -> None:
    done = runner.invoke(app, [*arguments, "--state", str(state.folder), "--json"])
    assert done.exit_code == 3
    assert "no uplion runs with the state folder" in done.stderr
    assert "no uplion runs" in json.loads(done.stdout)["error"]


def test_status_and_down_of_nothing(state: State) -> None:
    status = runner.invoke(app, ["status", "--state", str(state.folder), "--json"])
    assert status.exit_code == 3
    assert json.loads(status.stdout)["healthy"] is False
    down = runner.invoke(app, ["down", "--state", str(state.folder), "--json"])
    assert down.exit_code == 0
    assert json.loads(down.stdout) == {"stopped": False, "state_dir": str(state.folder)}


def test_a_supervisor_that_was_killed_is_not_taken_for_a_running_one(state: State) -> None:
    state.write_run(RUN)
    done = runner.invoke(app, ["status", "--state", str(state.folder), "--json"])
    assert done.exit_code == 3
    assert json.loads(done.stdout)["status"] == "ended unexpectedly"


def test_logs_know_their_parts(state: State) -> None:
    state.log("nats").write_text("one\ntwo\nthree\n")
    state.log("worker/m/0").write_text("hello\n")
    one = runner.invoke(app, ["logs", "nats", "-n", "2", "--state", str(state.folder)])
    assert one.stdout == "two\nthree\n"
    every = runner.invoke(app, ["logs", "--state", str(state.folder), "--json"])
    assert {json.loads(line)["part"] for line in every.stdout.splitlines()} == {"nats", "worker-m-0"}
    unknown = runner.invoke(app, ["logs", "nope", "--state", str(state.folder)])
    assert unknown.exit_code == 1
    assert "there is no log of 'nope'; there are: nats, worker-m-0" in unknown.stderr


def test_a_bad_manifest_starts_nothing(tmp_path: Path) -> None:
    manifest = tmp_path / "bad.yaml"
    manifest.write_text("kind: Nope\n")
    done = runner.invoke(app, ["up", "--state", str(tmp_path / "state"), "--port", "0", "-f", str(manifest), "--json"])
    assert done.exit_code == 1
    assert f"{manifest}:1:" in done.stderr
    assert not (tmp_path / "state").exists()


def test_every_command_has_json_and_state_and_help() -> None:
    commands = ["up", "down", "status", "logs", "usage", "chat"]
    groups = {
        "keys": ["create", "list", "revoke"],
        "models": ["list", "apply", "delete"],
        "prices": ["set", "list"],
        "statements": ["show"],
        "alerts": ["list"],
        "ledger": ["key", "export"],
        "usage": ["export", "margin"],
    }
    every = [[name] for name in commands] + [[group, name] for group, names in groups.items() for name in names]
    for command in every:
        done = runner.invoke(app, [*command, "--help"])
        assert done.exit_code == 0, command
        assert "--json" in done.stdout, command
        assert "--state" in done.stdout, command


def test_plain_progress_has_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    def run(status: str, message: str = "") -> dict[str, Any]:
        return {"parts": [{"name": "nats", "status": status, "message": message}]}

    shown = PlainProgress()
    for step in (run("waiting"), run("starting"), run("starting"), run("failing", "no port"), run("ready")):
        shown.show(step)
    lines = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["nats starting", "nats failing: no port", "nats ready"]
