"""The commands against a running stack, in one place since it takes seconds to start."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from tests.kit.processes import children
from tests.kit.until import until_sync

UPLION = str(Path(sys.executable).with_name("uplion"))
MANIFEST = """apiVersion: model.youxam.com/v1alpha1
kind: AIModel
metadata: {name: %s}
spec: {type: local, model: none, engine: synthetic, maxProcessNum: 8}
"""
runner = CliRunner()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stack that `uplion up --detach --json` started, and its state folder."""
    folder = tmp_path_factory.mktemp("state")
    manifest = folder / "first.yaml"
    manifest.write_text(MANIFEST % "first")
    command = [UPLION, "up", "--detach", "--json", "--port", "0", "--state", str(folder), "-f", str(manifest)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state_dir"] == str(folder)
    assert done.stderr == ""
    yield folder
    assert runner.invoke(app, ["down", "--state", str(folder)]).stdout == "stopped\n"


def uplion(state: Path, *arguments: str, exit_code: int = 0) -> Any:
    done = runner.invoke(app, [*arguments, "--state", str(state), "--json"])
    assert done.exit_code == exit_code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_keys_are_created_used_and_revoked(state: Path) -> None:
    limits = ["requests/minute=100", "cost/month/USD=2.5", "shadow:tokens/day/org/model=5000"]
    options = [text for limit in limits for text in ("--limit", limit)]
    created = uplion(state, "keys", "create", "--name", "mine", "--expires-in-days", "1", *options)
    assert created["key"].startswith("upl_")
    assert created["id"] in created["key"]
    assert (created["limits"], created["state"]) == (limits, "active")
    listed = {key["id"]: key for key in uplion(state, "keys", "list")}
    assert listed[created["id"]]["name"] == "mine"
    assert "key" not in listed[created["id"]]
    assert uplion(state, "keys", "revoke", created["id"])["state"] == "revoked"
    plain = runner.invoke(app, ["keys", "create", "--state", str(state)])
    assert plain.stdout.startswith("upl_")
    assert len(plain.stdout.split()) == 1  # so that $(uplion keys create) is the key
    refused = uplion(state, "keys", "revoke", "nobody12345x", exit_code=1)
    assert refused["error"]


def test_accounts_and_projects_are_changed_and_emptied(state: Path) -> None:
    plain = runner.invoke(app, ["accounts", "create", "Team", "--limit", "tokens/day=5", "--state", str(state)])
    account = plain.stdout.strip()
    assert account.startswith("acc_")
    assert uplion(state, "accounts", "show", account)["limits"] == ["tokens/day=5"]
    project = uplion(state, "projects", "create", "Search", "--account", account, "--label", "team=a=b")
    assert (project["account"], project["labels"]) == (account, {"team": "a=b"})
    assert [each["id"] for each in uplion(state, "projects", "list", "--account", account)] == [project["id"]]
    for noun, thing in (("accounts", account), ("projects", project["id"])):
        limits = ("--limit", "concurrency=4", "--limit", "requests/minute=9")
        changed = uplion(state, noun, "update", thing, "--name", "New", *limits, "--label", "a=b")
        assert (changed["name"], changed["limits"]) == ("New", ["concurrency=4", "requests/minute=9"])
        emptied = uplion(state, noun, "update", thing, "--clear", "limits", "--clear", "labels")
        assert (emptied["name"], emptied["limits"], emptied["labels"]) == ("New", [], {})
        assert uplion(state, noun, "suspend", thing)["state"] == "suspended"
        assert uplion(state, noun, "activate", thing)["state"] == "active"
        assert thing in [each["id"] for each in uplion(state, noun, "list")]
        assert uplion(state, noun, "update", thing, exit_code=1)["error"].startswith("update_mask")
        assert uplion(state, noun, "update", thing, "--limit", "tokens=5", exit_code=1)["error"]
    assert "Team" not in runner.invoke(app, ["accounts", "list", "--state", str(state)]).stdout
    assert uplion(state, "accounts", "show", "acc_nobody", exit_code=1)["error"] == "There is no account 'acc_nobody'."


def test_a_key_is_changed_rotated_and_deleted(state: Path) -> None:
    project = uplion(state, "projects", "create", "Search")["id"]
    may = ("--model", "first", "--model", "llama-*", "--tier", "default", "--network", "127.0.0.1")
    made = uplion(state, "keys", "create", "--project", project, "--label", "a=b", *may)
    assert (made["project"], made["account"], made["pepper_id"]) == (project, "default", "1")
    assert (made["models"], made["networks"]) == (["first", "llama-*"], ["127.0.0.1/32"])
    changed = uplion(state, "keys", "update", made["id"], "--clear", "networks", "--limit", "tokens/day=5")
    assert (changed["networks"], changed["limits"], changed["models"]) == ([], ["tokens/day=5"], made["models"])
    rotated = uplion(state, "keys", "rotate", made["id"], "--overlap", "1h")
    assert rotated["replaced"]["successor"] == rotated["id"] != made["id"]
    old, new = (uplion(state, "keys", "show", each) for each in (made["id"], rotated["id"]))
    assert old["expire_time"]
    same = ("account", "project", "labels", "scopes", "limits", "models", "tiers", "networks", "expire_time")
    assert {name: new[name] for name in same} == {name: changed[name] for name in same}
    assert uplion(state, "keys", "suspend", new["id"])["state"] == "suspended"
    assert uplion(state, "keys", "activate", new["id"])["state"] == "active"
    assert uplion(state, "keys", "delete", new["id"], exit_code=1)["error"].startswith("Revoke the key")
    uplion(state, "keys", "revoke", new["id"])
    assert uplion(state, "keys", "delete", new["id"]) == {"deleted": new["id"]}
    assert [each["id"] for each in uplion(state, "keys", "list", "--project", project)] == [old["id"]]
    facts = runner.invoke(app, ["keys", "show", old["id"], "--state", str(state)]).stdout
    assert "first, llama-*" in facts
    assert uplion(state, "keys", "rotate", old["id"], "--overlap", "soon", exit_code=1)["error"]


def test_a_pepper_is_added_for_the_next_start_and_the_old_one_kept_while_keys_hang_on_it(state: Path) -> None:
    (first,) = uplion(state, "peppers", "list")
    assert first["id"] == "1"
    assert first["keys"] >= 2
    assert uplion(state, "peppers", "add") == {"id": "2"}
    assert [each["id"] for each in uplion(state, "peppers", "list")] == ["2", "1"]
    assert "rotate them" in uplion(state, "peppers", "drop", "1", exit_code=1)["error"]
    assert uplion(state, "peppers", "drop", "2", exit_code=1)["error"]  # the one for new keys
    assert uplion(state, "peppers", "drop", "3", exit_code=1)["error"]
    assert uplion(state, "peppers", "drop", "1", "--force") == {"dropped": "1"}


def test_models_are_applied_listed_and_deleted(state: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "second.yaml"
    manifest.write_text(MANIFEST % "second")
    (applied,) = uplion(state, "models", "apply", "-f", str(manifest))
    assert applied["name"] == "second"

    def ready() -> Any:
        (second,) = [model for model in uplion(state, "models", "list") if model["name"] == "second"]
        return second if second["phase"] == "ready" and second["workers"] else None

    second = until_sync(ready, 90)
    assert second["workers"][0]["slots_total"] == 8
    assert uplion(state, "models", "delete", "second") == {"deleted": "second"}
    assert "second" not in [model["name"] for model in uplion(state, "models", "list")]
    assert uplion(state, "models", "delete", "second", exit_code=1)["error"]
    manifest.write_text(MANIFEST % "Bad Name")
    assert f"{manifest}:3:" in uplion(state, "models", "apply", "-f", str(manifest), exit_code=1)["error"]


def test_a_chat_is_answered_and_counted(state: Path) -> None:
    before = {row["group"]: row for row in uplion(state, "usage", "--by", "model")}
    answer = uplion(state, "chat", "hello", "--model", "first")
    assert answer["content"]
    assert answer["finish_reason"]

    def counted() -> Any:
        rows = {row["group"]: row for row in uplion(state, "usage", "--by", "model")}
        return rows.get("first", {}).get("output_tokens", 0) - before.get("first", {}).get("output_tokens", 0)

    assert until_sync(counted) == answer["usage"]["completion_tokens"]
    assert uplion(state, "chat", "hello", "--model", "absent", exit_code=1)["error"]


def test_a_price_is_set_listed_and_charged_from_then_on(state: Path) -> None:
    made = uplion(state, "prices", "set", "first", "--input", "0.15", "--output", "0.60", "--currency", "USD")
    assert (made["input_per_million_tokens"], made["cached_per_million_tokens"], made["in_force"]) == (
        "0.15",
        None,
        True,
    )
    assert uplion(state, "prices", "list") == [made]
    refused = uplion(
        state, "prices", "set", "first", "--input", "1e3", "--output", "1", "--currency", "USD", exit_code=1
    )
    assert "rates.input_per_million_tokens" in refused["error"]
    answer = uplion(state, "chat", "hello", "--model", "first")["usage"]
    cost = Decimal("0.15") * answer["prompt_tokens"] + Decimal("0.60") * answer["completion_tokens"]

    def priced() -> Any:
        (row, *_) = uplion(state, "usage", "--model", "first")
        return row if row["currency"] else None

    row = until_sync(priced, 30)
    assert (Decimal(row["cost"]), row["currency"]) == (cost / 1_000_000, "USD")
    assert row["unpriced_requests"] == row["requests"] - 1
    assert isinstance(uplion(state, "alerts", "list"), list)
    shown = runner.invoke(app, ["usage", "--by", "model", "--top", "1", "--state", str(state)]).stdout
    assert "UNPRICED" in shown
    assert f"{row['cost']} USD" in shown


def test_the_ledger_is_taken_out_and_verified_without_the_platform(state: Path, tmp_path: Path) -> None:
    until_sync(lambda: uplion(state, "ledger", "key") and uplion(state, "usage")[0]["requests"])
    keys = uplion(state, "ledger", "key")
    file = tmp_path / "ledger.jsonl"
    assert uplion(state, "ledger", "export", "--all", "-o", str(file))["bytes"] == file.stat().st_size
    verify = ["ledger", "verify", str(file), "--public-key", keys[0]["public_key"]]
    done = runner.invoke(app, verify)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("valid: ")
    file.write_text(file.read_text().replace('"completed"', '"cancelled"', 1))
    done = runner.invoke(app, verify)
    assert done.exit_code == 1
    assert "the rows are not those that were chained" in done.stderr
    assert runner.invoke(app, [*verify[:3], "--public-key", "ab"]).exit_code == 1


def test_a_conversation_reads_its_lines_from_a_pipe(state: Path) -> None:
    done = runner.invoke(app, ["chat", "--state", str(state)], input="hello\n\nand again\n")
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_status_shows_every_part(state: Path) -> None:

    def parts_without_the_deleted() -> Any:
        parts = {part["name"]: part for part in uplion(state, "status")["parts"]}
        return parts if "worker/second/0" not in parts else None

    parts = until_sync(parts_without_the_deleted)  # its worker may take its time to end
    ours = {"supervisor", "authz", "router", "billing-control", "worker/first/0"}
    assert set(parts) >= {*ours, "postgres", "valkey", "nats", "envoy"}
    assert all(part["healthy"] and part["pid"] and part["memory_bytes"] > 1 << 20 for part in parts.values())
    assert runner.invoke(app, ["status", "--state", str(state)]).exit_code == 0


def test_logs_are_followed(state: Path) -> None:
    command = [UPLION, "logs", "router", "-f", "-n", "0", "--state", str(state)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        # A suite that a shell started in the background passes on that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    guard = threading.Timer(60, process.kill)
    guard.start()
    followed = threading.Event()

    def write() -> None:
        while not followed.wait(0.2):  # again and again: nobody says when it has found the end of the log
            with open(state / "logs/router.log", "a") as log:
                log.write("a new line\n")

    writing = threading.Thread(target=write)
    writing.start()
    try:
        assert "a new line\n" in process.stdout  # the services may say something of their own before
    finally:
        followed.set()
        writing.join()
        guard.cancel()
        process.send_signal(signal.SIGINT)
        process.wait(60)
        process.stdout.close()


def test_memory_of_our_own_processes_is_small(state: Path) -> None:
    """Idle, without the worker: memory of the supervisor and the services, shared pages divided among them."""
    ours = ("supervisor", "authz", "router", "billing-control")
    pids = [part["pid"] for part in uplion(state, "status")["parts"] if part["name"] in ours]
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    memory = [int(line.split()[1]) for text in rollups for line in text.splitlines() if line.startswith("Pss:")]
    assert len(memory) == 4
    assert sum(memory) < 200 * 1024


@pytest.mark.parametrize("detach", [[], ["--detach"]])
def test_passwords_of_urls_do_not_stay_on_the_command_line(tmp_path: Path, detach: list[str]) -> None:
    """Nor on that of any child. A server that never answers keeps the start waiting while we look."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        urls = [f"--{name}-url={name}://user:s3%2Fcret-{name}@{address}" for name in ("postgres", "redis", "nats")]
        command = [UPLION, "up", "--port", "0", "--state", str(tmp_path / "state"), *urls, *detach]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            silent.settimeout(120)
            silent.accept()[0].close()
            lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (process.pid, *children(process.pid))]
            _, complaint = process.communicate(timeout=120)
    assert len(lines) == (2 if detach else 1)
    assert not [line for line in lines if b"s3" in line]
    assert lines[0].count(b"user:***") == 3
    assert complaint.endswith(f"no NATS server answers at {address} (--nats-url)\n")
    assert process.returncode == 1


@pytest.mark.parametrize("name", ["postgres", "redis", "nats"])
def test_urls_can_be_given_in_the_environment(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"  # where nobody listens any more
    environment = {**os.environ, f"UPLION_{name.upper()}_URL": f"{name}://user:secret@{address}"}
    command = [UPLION, "up", "--port", "0", "--state", str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert f"server answers at {address} (--{name}-url)" in done.stderr
