"""What `uplion up` shows while parts start: a live list in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from typing import Protocol

from cli.output import JsonObject

_MARKS = {"ready": ("✓", "green"), "failing": ("✗", "red"), "starting": ("…", "yellow")}


class Progress(Protocol):
    """Gets the state of the parts whenever it changes."""

    def show(self, run: JsonObject) -> None:
        """Shows the present state."""

    def close(self) -> None:
        """Nothing more will be shown."""


def progress(*, silent: bool) -> Progress:
    """The display that suits stderr."""
    if sys.stderr.isatty():
        return LiveProgress()
    return NoProgress() if silent else PlainProgress()


class NoProgress:
    """Shows nothing."""

    def show(self, run: JsonObject) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PlainProgress:
    """A line whenever a part's status changes."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._shown: dict[str, str] = {}

    def show(self, run: JsonObject) -> None:
        """Prints what is new."""
        for part in run.get("parts", ()):
            status = str(part["status"])
            if self._shown.get(part["name"]) != status and status != "waiting":
                self._shown[part["name"]] = status
                reason = f": {part['message']}" if part["message"] else ""
                seconds = time.monotonic() - self._since
                print(f"[{seconds:5.1f} s] {part['name']} {status}{reason}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is pending."""


class LiveProgress:
    """All parts, redrawn in place whenever one changes; no thread, as the supervisor must not have any."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._since = time.monotonic()
        self._ready_at: dict[str, float] = {}
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        self._live.start()

    def show(self, run: JsonObject) -> None:
        """Draws the list anew."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False)
        for part in _ordered(run.get("parts", ())):
            mark, color = _MARKS.get(part["status"], ("·", "dim"))
            if part["status"] == "ready":
                self._ready_at.setdefault(part["name"], time.monotonic() - self._since)
            seconds = self._ready_at.get(part["name"])
            note = f"{seconds:.1f} s" if seconds is not None else part["message"] or part["status"]
            table.add_row(Text(mark, color), Text(part["name"]), Text(note, "dim"))
        self._live.update(table, refresh=True)

    def close(self) -> None:
        """Removes the list."""
        self._live.stop()


def _ordered(parts: Sequence[JsonObject]) -> list[JsonObject]:
    return sorted(parts, key=lambda part: str(part["name"]).startswith("worker"))
