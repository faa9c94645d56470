"""The folder of a stack's Unix sockets: short, on a file system that has sockets, and open to our own user alone.

Its name is fresh at every start and made by mkdir with mode 0700, so nobody can have prepared it. We hold its lock
while we run: systemd-tmpfiles spares it for that, and what nobody holds was left by a killed supervisor and goes at the
next start.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stack.errors import StackError

PATH_BYTES_MAX = 107  # of a socket's path: the kernel's 108 hold a zero byte too
_NAME_BYTES_MAX = 16  # of a socket in the folder
_SUFFIX_BYTES = 8  # what mkdtemp adds
_PLAIN = re.compile(r"[A-Za-z0-9._/~+-]+")  # in gRPC's addresses, which are URIs, others are quoted; in Envoy's not
_SHARED = ("/tmp", "/var/tmp")  # noqa: S108 - what is made there is made with care


@contextlib.contextmanager
def socket_folder(state: Path) -> Iterator[Path]:
    """The folder for the length of a block: in the state folder where that can hold it, else in a temporary one."""
    state = state.resolve()
    shared = f"uplion-{hashlib.sha256(os.fsencode(state)).hexdigest()[:8]}-"  # other stacks are there too
    refusals: list[str] = []
    for base in dict.fromkeys((state, *(Path(each).resolve() for each in (tempfile.gettempdir(), *_SHARED)))):
        prefix = "sockets-" if base == state else shared
        if refusal := _refusal(base, prefix):
            refusals.append(f"{base} {refusal}")
            continue
        _remove_left_over(base, prefix)
        try:
            folder = _made(base, prefix)
        except OSError as error:
            refusals.append(f"{base} cannot hold it: {error.strerror or error}")
            continue
        with _locked(folder):
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        return
    raise StackError(
        f"no folder for the services' sockets: {'; '.join(refusals)}; set TMPDIR to a short private folder"
    )


def _refusal(base: Path, prefix: str) -> str:
    """Why a folder cannot hold ours; empty when it can."""
    longest = len(os.fsencode(base)) + len(f"/{prefix}/") + _SUFFIX_BYTES + _NAME_BYTES_MAX
    if longest > PATH_BYTES_MAX:
        return "has too long a path"
    if not _PLAIN.fullmatch(str(base)):
        return "has a space or another special character in its path"
    try:
        for folder in (base, *base.parents):
            if not _is_ours_alone_to_rename(folder):
                return f"can be changed by others at {folder}"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def _is_ours_alone_to_rename(folder: Path) -> bool:
    """Whether no other user can rename or replace our entries there."""
    found = folder.stat()
    shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return found.st_uid in _trusted_owners() and (not shared or bool(found.st_mode & stat.S_ISVTX))


def _trusted_owners() -> set[int]:
    """Root and we. In a user namespace that maps a few ids, root outside of it shows as the overflow id."""
    owners = {0, os.geteuid()}
    with contextlib.suppress(OSError, ValueError):
        if int(Path("/proc/self/uid_map").read_text().split()[2]) < 1 << 31:
            owners.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return owners


def _made(base: Path, prefix: str) -> Path:
    """A new folder in which a socket was made; raises OSError, leaving none."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    try:
        found = folder.lstat()
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise PermissionError(1, "it does not keep owner and mode")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.bind(str(folder / "probe"))
        (folder / "probe").unlink()
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_left_over(base: Path, prefix: str) -> None:
    """Removes the folders of our killed supervisors; what another user made under such a name stays, as it is his."""
    for folder in base.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid == os.geteuid():
                with _locked(folder):
                    shutil.rmtree(folder, ignore_errors=True)
