"""Options that several commands share, and what commands of a running stack need."""

import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli.output import CommandError, JsonObject
from stack.settings import default_state
from stack.state import State

EXIT_NOT_RUNNING = 3
_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

StateOption = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="Folder of the stack's state.", show_default="under XDG_STATE_HOME"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def _complete_limit(incomplete: str) -> list[str]:
    from cli import limit_text

    return limit_text.complete(incomplete)


LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="LIMIT",
        help="Such as requests/minute=100, tokens/day=1000000, cost/month/USD=25.00, tokens/life/MODEL=5000,"
        " shadow:concurrency=4 (repeatable; all of them together). Without one of concurrency a key may have 256"
        " requests at once, an account 512.",
        show_default="none",
        autocompletion=_complete_limit,
    ),
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="NAME=VALUE", help="Your own words (repeatable; all of them together).", show_default="none"
    ),
]


def labels_of(texts: Sequence[str] | None) -> dict[str, str] | None:
    """Values of --label; None when there are none."""
    if not texts:
        return None
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (name, found, _) in zip(texts, pairs, strict=True) if not name or not found]:
        raise CommandError(f"{wrong[0]!r} is no label; write NAME=VALUE")
    return {name: value for name, _, value in pairs}


def duration_of(text: str) -> timedelta:
    """Such as 90s, 30m, 24h or 7d; 0 is none."""
    match = _DURATION.fullmatch(text)
    if match is None and text != "0":
        raise CommandError(f"{text!r} is no duration; write 90s, 30m, 24h or 7d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else timedelta()


def state_of(folder: Path | None) -> State:
    """The state folder that a command uses."""
    return State(folder or default_state())


def running(state: State) -> JsonObject:
    """The supervisor's own report; CommandError when none runs."""
    run = state.read_run() if state.holder() else {}
    if "base_url" not in run:
        raise CommandError(
            f"no uplion runs with the state folder {state.folder}; start it: uplion up", EXIT_NOT_RUNNING
        )
    return run
