"""The state folder."""

import os
import socket
from pathlib import Path

import pytest

from stack import ports, state
from stack.__main__ import from_json, to_json
from stack.errors import StackError
from stack.settings import StackSettings, default_state
from stack.state import State
from stack.supervisor import read_manifests, sentence

MANIFEST = """apiVersion: model.youxam.com/v1alpha1
kind: AIModel
metadata: {{name: {name}}}
spec: {{type: local, model: x, engine: synthetic}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> State:
    made = State(tmp_path / "state")
    made.create()
    return made


def test_only_its_owner_may_read_it(folder: State) -> None:
    folder.ensure_secrets(("postgres",))
    folder.write_run({"status": "ready"})
    assert folder.folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.folder.glob("*.json"))


def test_secrets_are_kept_and_new_ones_join(folder: State) -> None:
    first = folder.ensure_secrets(("a",))
    both = folder.ensure_secrets(("a", "b"))
    assert both["a"] == first["a"]
    assert len({*both.values()}) == 2
    assert State(folder.folder).ensure_secrets(("a", "b")) == both


def test_two_supervisors_never_share_it(folder: State) -> None:
    assert folder.holder() is None
    with folder.held():
        assert folder.holder() == os.getpid()
        with pytest.raises(StackError, match="another uplion runs"), State(folder.folder).held():
            pass
    with folder.held():
        pass


def test_an_unusable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match="cannot be used"):
        State(tmp_path / "file").create()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
@pytest.mark.parametrize("kind", ["folder", "link to ours"])
def test_another_users_folder_is_refused(tmp_path: Path, kind: str) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir(mode=0o755)
    if kind == "folder":
        theirs.mkdir()
    else:
        theirs.symlink_to(ours)
    os.chown(theirs, 65534, 65534, follow_symlinks=False)
    with pytest.raises(StackError, match=r"belongs to another user \(id 65534\)"):
        State(theirs).create()
    assert ours.stat().st_mode & 0o777 == 0o755
    assert not [*theirs.iterdir()]


def test_logs_stay_under_their_bound(folder: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "LOG_BYTES_MAX", 1000)
    log = folder.log("worker/m/0")
    with open(log, "ab", buffering=0) as writer:
        writer.write(b"x" * 999 + b"end\n")
        folder.bound_logs()
        writer.write(b"more\n")
    assert log.read_bytes() == b"more\n"
    kept = log.with_suffix(".log.1").read_bytes()
    assert len(kept) == 500
    assert kept.endswith(b"end\n")


def test_ports_are_kept_where_they_are_free() -> None:
    first = ports.choose(["a", "b"], {})
    assert len({*first.values()}) == 2
    assert ports.choose(["a", "b"], first) == first
    with socket.create_server(("127.0.0.1", first["a"])):
        second = ports.choose(["a", "b"], first)
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]
    assert ports.choose(["a", "b"], first, first["a"])["a"] != first["a"]


def test_settings_survive_the_way_to_a_detached_supervisor(tmp_path: Path) -> None:
    settings = StackSettings(tmp_path, port=1, manifests=(tmp_path / "m",), nats_url="nats://x", processes=2)
    assert from_json(to_json(settings)) == settings


@pytest.mark.parametrize(("base", "expected"), [("/x/y", "/x/y/uplion"), ("relative", ""), ("", "")])
def test_the_default_is_the_users_state_folder(monkeypatch: pytest.MonkeyPatch, base: str, expected: str) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", base)
    assert default_state() == Path(expected or Path.home() / ".local/state/uplion")


def test_a_bad_manifest_names_its_file_and_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(MANIFEST.format(name="m").replace("x,", "x, replicas: many,"))
    with pytest.raises(StackError, match=rf"{bad}:4: spec\.replicas"):
        read_manifests(StackSettings(tmp_path, manifests=(bad,)))


def test_two_manifests_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(MANIFEST.format(name="m"))
    with pytest.raises(StackError, match="two of them are named m"):
        read_manifests(StackSettings(tmp_path, manifests=(tmp_path / "a", tmp_path / "b")))


def test_the_first_expected_problem_of_a_group_is_the_sentence() -> None:
    inner = ExceptionGroup("inner", [ValueError("a bug"), StackError("the reason.")])
    assert sentence(ExceptionGroup("outer", [inner, StackError("another")])) == "the reason."
    assert sentence(OSError(28, "No space left on device", "/x")) == "/x: No space left on device"
    assert sentence(ExceptionGroup("bugs", [ValueError("a bug")])) == ""


def test_the_demo_model_is_added_at_the_first_start_only(tmp_path: Path) -> None:
    assert [model.name for model in read_manifests(StackSettings(tmp_path))] == ["uplion-demo"]
    State(tmp_path).keys_file.write_text("{}")
    assert read_manifests(StackSettings(tmp_path)) == []
