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
