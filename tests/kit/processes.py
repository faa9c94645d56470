"""Processes as /proc shows them."""

import os
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether the process still runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def children(pid: int) -> list[int]:
    """Of the process's main thread, now; empty when it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def mentioning(folder: Path) -> list[int]:
    """Every process that mentions the folder in its arguments, environment or working folder."""
    found = []
    needle = os.fsencode(folder)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                text += os.fsencode(os.readlink(entry / "cwd"))
            except OSError:
                continue
            if needle in text and alive(int(entry.name)):
                found.append(int(entry.name))
    return found
