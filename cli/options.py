"""Options that several commands share, and what commands of a running stack need."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.output import CommandError
from stack.settings import default_state
from stack.state import State

EXIT_NOT_RUNNING = 3

StateOption = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="Folder of the stack's state.", show_default="under XDG_STATE_HOME"),
]


def _complete_limit(incomplete: str) -> list[str]:
    from cli import limits

    return limits.complete(incomplete)


LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="LIMIT",
        help="Such as requests/minute=100, tokens/day=1000000, cost/month/USD=25.00, tokens/life/MODEL=5000,"
        " shadow:concurrency=4 (repeatable).",
        show_default="none",
        autocompletion=_complete_limit,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def state_of(folder: Path | None) -> State:
    """The state folder that a command means."""
    return State(folder or default_state())


def running(state: State) -> dict[str, Any]:
    """What the supervisor says of itself; CommandError when none runs."""
    run = state.read_run() if state.holder() else {}
    if "base_url" not in run:
        raise CommandError(
            f"no uplion runs with the state folder {state.folder}; start it: uplion up", EXIT_NOT_RUNNING
        )
    return run
