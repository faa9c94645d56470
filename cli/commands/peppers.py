"""`uplion peppers`."""

from collections import Counter
from datetime import UTC, datetime
from typing import Annotated

import typer

from cli.options import JsonOption, StateOption, state_of
from cli.output import CommandError, command, print_json, print_table, report
from stack import peppers
from stack.state import State

app = typer.Typer(no_args_is_help=True, help="Replace the secret that keys' digests are made with.")


@app.command("list")
@command
def list_peppers(state: StateOption = None, as_json: JsonOption = False) -> None:
    """List peppers by id, the one for new keys first, and how many keys hang on each."""
    folder = state_of(state)
    hanging = _hanging(folder)
    rows = [{"id": each, "keys": hanging[each]} for each in peppers.ids(folder)]
    if as_json:
        print_json(rows)
    else:
        print_table(("id", "keys"), [(row["id"], row["keys"]) for row in rows])


@app.command("add")
@command
def add(state: StateOption = None, as_json: JsonOption = False) -> None:
    """Make a pepper for new keys, from the next start on; the keys there are go on working."""
    made = peppers.add(state_of(state))
    report({"id": made}, f"pepper {made}: restart the stack, then rotate the keys of the old one", as_json=as_json)


@app.command("drop")
@command
def drop(
    pepper_id: Annotated[str, typer.Argument(metavar="ID", help="As `uplion peppers list` shows it.")],
    force: Annotated[bool, typer.Option("--force", help="Even if keys need it, or that is unknown.")] = False,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove an old pepper, from the next start on; keys that were made with it never work again."""
    folder = state_of(state)
    if not force and (count := _hanging(folder)[pepper_id]):
        raise CommandError(f"{count} keys hang on pepper {pepper_id!r}; rotate them, or say --force")
    peppers.drop(folder, pepper_id)
    report({"dropped": pepper_id}, f"dropped pepper {pepper_id}, from the next start on", as_json=as_json)


def _hanging(folder: State) -> Counter[str]:
    """Keys that are neither revoked nor expired, by pepper; the stack must run to tell."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(folder) as api:
        keys = list(identity.keys(api))
    now = datetime.now(UTC)
    return Counter(
        key["pepper_id"]
        for key in keys
        if key["state"] != "revoked" and not (key["expire_time"] and datetime.fromisoformat(key["expire_time"]) <= now)
    )
