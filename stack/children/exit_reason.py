"""Why a process ended, in one line, from the end of its log."""

import json
import re
from pathlib import Path

_TAIL_BYTES = 64 << 10
_LINES = 2
_MOST_CHARACTERS = 300
# The last line of a traceback, also inside a drawn exception group: "  | package.module.SomeError: why".
_EXCEPTION = re.compile(r"^[\s|]*(?P<name>[A-Za-z_][\w.]*): (?P<why>\S.*)$")


def exit_reason(log: Path, start_bytes: int = 0) -> str:
    """From what was written after `start_bytes`; empty when nothing was."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start_bytes if start_bytes <= size else 0, size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        if words := _of_record(line):
            return words[:_MOST_CHARACTERS]
    if any(line.startswith("Traceback ") for line in lines):
        lines = [_cause(lines) or lines[-1]]
    return " | ".join(line.strip() for line in lines[-_LINES:])[:_MOST_CHARACTERS]


def _of_record(line: str) -> str:
    """The cause in a JSON log line of an error; empty for any other line."""
    try:
        record = json.loads(line)
    except ValueError:
        return ""
    if not isinstance(record, dict) or record.get("level") not in ("error", "critical"):
        return ""
    return _cause(str(record.get("error", "")).splitlines()) or str(record.get("event", ""))


def _cause(traceback: list[str]) -> str:
    found = [match for match in map(_EXCEPTION.match, traceback) if match and match["name"][-1:].isalpha()]
    if not found:
        return ""
    name, why = found[-1]["name"], found[-1]["why"]
    return why if "." in name else f"{name}: {why}"  # our own errors are sentences, Python's need their name
