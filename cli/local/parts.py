"""`uplion status` and `uplion logs`."""

import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from cli.output import CommandError, JsonObject
from stack.children.watchdog import SILENCE_SECONDS
from stack.state import State

_CONNECT_SECONDS = 1.0
_FOLLOW_EVERY_SECONDS = 0.2


def status(state: State) -> JsonObject:
    """Every part with its health, pid, memory and address."""
    alive = state.holder() is not None
    run = state.read_run()
    parts: list[JsonObject] = []
    if alive:
        parts = [_supervisor(state, run), *(_external(name, run) for name in run.get("external", ()))]
        parts += [_part(part) for part in run.get("parts", ())]
    healthy = alive and run.get("status") == "ready" and all(part["healthy"] for part in parts)
    shown = run.get("status", "stopped")
    if not alive and shown not in ("stopped", "failed"):
        shown = "ended unexpectedly"
    return {
        "status": shown if alive or run else "stopped",
        "healthy": healthy,
        "state_dir": str(state.folder),
        "base_url": run.get("base_url"),
        "message": run.get("message", ""),
        "parts": parts,
    }


def _supervisor(state: State, run: JsonObject) -> JsonObject:
    pid, silent_seconds = run.get("pid"), state.silent_seconds()
    hung = silent_seconds > SILENCE_SECONDS  # then nobody looks after the parts, and what is said of them is old
    return {
        "name": "supervisor",
        "status": "unhealthy" if hung else run.get("status", ""),
        "healthy": not hung,
        "pid": pid,
        "memory_bytes": memory_bytes(pid, family=False) if pid else None,
        "address": "",
        "restarts": 0,
        "message": f"no sign of life for {silent_seconds:.0f} s" if hung else "",
    }


def _external(name: str, run: JsonObject) -> JsonObject:
    parts = urlsplit(run[f"{'redis' if name == 'valkey' else name}_url"])
    address = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    healthy = _listens(address) if parts.port else True
    return {
        "name": name,
        "status": "external",
        "healthy": healthy,
        "pid": None,
        "memory_bytes": None,
        "address": address,
        "restarts": 0,
        "message": "",
    }


def _part(part: JsonObject) -> JsonObject:
    pid, address = part["pid"], part["address"]
    return {
        **{name: part[name] for name in ("name", "status")},
        "healthy": part["status"] == "ready" and bool(pid) and (not address or _listens(address)),
        "pid": pid,
        "memory_bytes": memory_bytes(pid) if pid else None,
        "address": address,
        "metrics_address": part["metrics_address"],
        "restarts": part["restarts"],
        "last_end": part["last_end"],
        "message": part["message"],
    }


def _listens(address: str) -> bool:
    if address.startswith("unix:"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_CONNECT_SECONDS)
            return connection.connect_ex(address.removeprefix("unix:")) == 0
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def memory_bytes(pid: int, *, family: bool = True) -> int | None:
    """Memory of a process and its children, shared pages divided among those who share them (PSS)."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        own = next(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if family else []
    except (OSError, StopIteration):
        return None
    return own + sum(memory_bytes(int(child)) or 0 for child in children)


def log_lines(state: State, part: str | None, *, last: int, follow: bool) -> Iterator[tuple[str, str]]:
    """Lines with the part they are from: the last of each log, then new ones as they are written."""
    if part is not None and not state.log(part).exists():
        known = ", ".join(sorted(path.stem for path in state.logs.glob("*.log"))) or "none"
        raise CommandError(f"there is no log of {part!r}; there are: {known}")
    positions: dict[Path, int] = {}
    while True:
        for path in [state.log(part)] if part is not None else sorted(state.logs.glob("*.log")):
            text, positions[path] = _read(path, positions.get(path), last)
            yield from ((path.stem, line) for line in text)
        if not follow:
            return
        time.sleep(_FOLLOW_EVERY_SECONDS)


def _read(path: Path, position: int | None, last: int) -> tuple[list[str], int]:
    """Whole new lines and where they end; the first time the last ones only."""
    try:
        with open(path, "rb") as log:
            size = log.seek(0, 2)
            log.seek(0 if position is None or position > size else position)  # an emptied log starts anew
            start = log.tell()
            data = log.read()
    except OSError:
        return [], position or 0
    whole = data[: data.rfind(b"\n") + 1] if position is not None else data
    lines = whole.decode(errors="replace").splitlines()
    if position is None:
        lines = lines[-last:] if last else []
    return lines, start + len(whole)


def print_log(part: str, line: str, *, as_json: bool, named: bool) -> None:
    """One line of a log."""
    if as_json:
        print(json.dumps({"part": part, "line": line}))
    else:
        print(f"{part}: {line}" if named else line)
    sys.stdout.flush()
