"""`uplion models`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import JsonOption, StateOption, state_of
from cli.output import CommandError, command, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="List, apply and delete models.")


@app.command("list")
@command
def list_models(state: StateOption = None, as_json: JsonOption = False) -> None:
    """List models and how they fare."""
    from cli.client import models as client
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        models = list(client.models(api))
    if as_json:
        print_json(models)
        return
    columns = ("name", "phase", "workers", "slots free", "queued", "type", "model", "message")
    rows = [
        (
            model["name"],
            model["phase"],
            f"{len(model['workers'])}/{model['replicas']}",
            sum(worker["slots_free"] for worker in model["workers"]),
            model["queued"],
            model["type"],
            model["model"],
            model["message"],
        )
        for model in models
    ]
    print_table(columns, rows)


@app.command("apply")
@command
def apply(
    manifests: Annotated[
        list[Path], typer.Option("--file", "-f", metavar="MANIFEST", help="AIModel file (repeatable).")
    ],
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create or change models; their workers start in the background."""
    from cli.client import models as client
    from cli.client.connection import admin
    from common import manifest

    try:
        wanted = [model for path in manifests for model in manifest.load(path)]
    except manifest.ManifestError as problem:
        raise CommandError(str(problem)) from problem
    with admin(state_of(state)) as api:
        applied = [client.apply_model(api, model) for model in wanted]
    if as_json:
        print_json(applied)
    else:
        for model in applied:
            typer.echo(f"applied {model['name']}, revision {model['revision']}")


@app.command("delete")
@command
def delete(
    name: Annotated[str, typer.Argument(help="metadata.name of its manifest.")],
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a model; its workers finish what they hold."""
    from cli.client import models as client
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        client.delete_model(api, name)
    if as_json:
        print_json({"deleted": name})
    else:
        typer.echo(f"deleted {name}")
