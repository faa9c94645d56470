"""The folder of a stack's sockets, also where another user has prepared something."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import sockets
from stack.errors import StackError
from stack.sockets import PATH_BYTES_MAX, socket_folder

STRANGER = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A world-writable folder as /tmp, the only one there is."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t-") as name:
        folder = Path(name)
        folder.chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setattr(sockets, "_SHARED", ())
        yield folder


def test_it_is_ours_alone_and_leaves_no_trace(state: Path) -> None:
    with socket_folder(state) as folder:
        assert folder.parent == state
        assert folder.stat().st_mode & 0o777 == 0o700
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "listener"))
    assert [*state.iterdir()] == []


@pytest.mark.parametrize(
    "name", ["x" * 200, "with space", "with%20quoted", "unicode-\N{LATIN SMALL LETTER E WITH ACUTE}"]
)
def test_a_state_folder_that_cannot_hold_sockets_is_no_problem(tmp_path: Path, temporary: Path, name: str) -> None:
    with socket_folder(tmp_path / name) as folder:
        assert folder.parent == temporary
        assert len(str(folder / ("n" * 16))) <= PATH_BYTES_MAX
    assert [*temporary.iterdir()] == []


def test_the_longest_name_fits(state: Path, tmp_path: Path) -> None:
    with socket_folder(state) as folder:
        longest = state / ("x" * (PATH_BYTES_MAX - 16 - len(str(folder)) - 1 - 1))
        longest.mkdir()
    with socket_folder(longest) as folder:
        assert len(str(folder / ("n" * 16))) == PATH_BYTES_MAX
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / ("n" * 16)))


def test_what_a_killed_supervisor_left_is_removed_and_a_running_ones_stays(state: Path) -> None:
    code = (
        "import os, sys, pathlib; from stack.sockets import socket_folder\n"
        "with socket_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    print(folder, flush=True); sys.stdin.read(); os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", code, str(state)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with socket_folder(state):
            assert theirs.exists()
        other.communicate()
    assert theirs.exists()
    with socket_folder(state) as ours:
        assert [*state.iterdir()] == [ours]


@root
@pytest.mark.parametrize("trap", ["folder", "link", "file"])
def test_another_users_folder_is_neither_used_nor_removed(tmp_path: Path, temporary: Path, trap: str) -> None:
    long = tmp_path / ("x" * 200)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    with socket_folder(long) as folder:
        name = folder.name
    prepared = temporary / name
    if trap == "folder":
        prepared.mkdir(mode=0o777)
    elif trap == "link":
        prepared.symlink_to(precious)
    else:
        prepared.touch()
    os.chown(prepared, STRANGER, STRANGER, follow_symlinks=False)
    with socket_folder(long) as folder:
        assert folder != prepared
        assert folder.stat().st_uid == os.geteuid()
    assert prepared.lstat().st_uid == STRANGER
    assert (precious / "file").exists()


@root
@pytest.mark.parametrize("owner", [0, STRANGER])
def test_a_place_that_another_user_can_change_is_not_used(tmp_path: Path, temporary: Path, owner: int) -> None:
    temporary.chmod(0o777 if owner == 0 else 0o1777)  # without the sticky bit whoever can write can rename
    os.chown(temporary, owner, owner)
    with pytest.raises(StackError) as complaint, socket_folder(tmp_path / ("x" * 200)):
        pass
    assert f"{temporary} can be changed by others at {temporary}" in str(complaint.value)
    assert "has too long a path" in str(complaint.value)
    assert len(str(complaint.value).splitlines()) == 1
