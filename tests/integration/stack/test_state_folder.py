"""Starts on state folders of every kind: on small, full and read-only disks, and with unusual names."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stack.ports import free_port
from tests.kit.platform import UPLION
from tests.kit.stack import StartStack

# Up again on what is there, after the disk has lost all but so many megabytes.
_FILLED = """
fill() { head -c $(( ($(df -k --output=avail . | tail -1) - $1 * 1024) * 1024 )) /dev/zero > ballast; }
again() { rm -f ballast; fill "$1"; $UP; echo "exit $?"; $DOWN; }
"""


def _may_mount() -> bool:
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True) if shutil.which("unshare") else None
    return os.geteuid() == 0 and tried is not None and tried.returncode == 0


mounts = pytest.mark.skipif(not _may_mount(), reason="a small disk is a mount, which only root can make")


@pytest.fixture
def on_a_disk(tmp_path: Path, manifest: Path) -> Any:
    """Runs a shell script on a disk of so many megabytes, which the script alone sees; what it printed, by line."""

    def run(megabytes: int, script: str) -> list[str]:
        command = f"{UPLION} {{}} --state {tmp_path}/state"
        environment = {
            **os.environ,
            "UP": command.format("up --detach --json") + f" --port {free_port()} -f {manifest}",
            "DOWN": command.format("down"),
        }
        mounted = f"mount -t tmpfs -o size={megabytes}m small {tmp_path} && cd {tmp_path} && {_FILLED}{script}"
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", mounted], capture_output=True, text=True, timeout=300, env=environment
        )
        assert done.returncode == 0, done
        assert len(done.stderr.splitlines()) == done.stdout.count('{"error"'), done.stderr  # a sentence each, no more
        return done.stdout.splitlines()

    return run


@mounts
@pytest.mark.parametrize("megabytes", [1, 100, 359])
def test_a_disk_that_is_too_small_is_one_sentence_and_nothing_else(on_a_disk: Any, megabytes: int) -> None:
    said, code, *left = on_a_disk(megabytes, "$UP; echo $?; ls -A")
    assert f" has {megabytes} MB free, where 360 MB are needed" in said
    assert (code, left) == ("1", [])


@mounts
def test_a_full_disk_is_one_sentence_and_nothing_else(on_a_disk: Any) -> None:
    said, code, *left = on_a_disk(10, "fill 0; $UP; echo $?; ls -A")
    assert " has 0 MB free, where 360 MB are needed" in said
    assert (code, left) == ("1", ["ballast"])


@mounts
@pytest.mark.parametrize("megabytes", [361, 412, 562, 600])
def test_a_disk_that_is_large_enough_is(on_a_disk: Any, megabytes: int) -> None:
    facts, stopped = on_a_disk(megabytes, "$UP; $DOWN")
    assert json.loads(facts)["api_key"]
    assert stopped == "stopped"


@mounts
def test_what_is_there_needs_less(on_a_disk: Any) -> None:
    script = "$UP >first; $DOWN; again 70; again 60; again 0"
    stopped, facts, code, stopped_again, less, failed, nothing, none, failed_too, nothing_too = on_a_disk(400, script)
    assert (stopped, code, stopped_again, failed, failed_too) == ("stopped", "exit 0", "stopped", "exit 1", "exit 1")
    assert json.loads(facts)["api_key"]
    assert " has 60 MB free, where 64 MB are needed (64 MB for streams, counters and logs); free some" in less
    assert " has 0 MB free, where 64 MB are needed" in none
    assert nothing.startswith("nothing was running")
    assert nothing_too == nothing


@mounts
@pytest.mark.parametrize("there", ["", "mkdir state;"])
def test_a_read_only_folder_is_one_sentence(on_a_disk: Any, there: str) -> None:
    said, code = on_a_disk(400, f"{there} mount -o remount,ro . ; $UP; echo $?")
    assert said.endswith('/state cannot be used: Read-only file system"}')
    assert code == "1"


@pytest.mark.parametrize("name", ["x" * 200, 'with space, "quotes", \\backslash, $HOME, %20, #, ümlaut\n'])
def test_any_path_will_do(start_stack: StartStack, tmp_path: Path, name: str) -> None:
    stack = start_stack(state=tmp_path / name).until_ready()
    assert stack.end() == 0
