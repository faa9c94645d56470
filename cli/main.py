"""The `uplion` command. What a command needs is imported when it runs, so that `uplion --help` is quick."""

from pathlib import Path
from typing import Annotated

import typer

from cli.commands import accounts, alerts, keys, ledger, models, peppers, prices, projects, statements, usage
from cli.options import EXIT_NOT_RUNNING, JsonOption, StateOption, running, state_of
from cli.output import CommandError, command, print_json, print_table
from stack.settings import PORT_DEFAULT, StackSettings, default_state

app = typer.Typer(
    name="uplion",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One OpenAI-compatible endpoint and one native gRPC API in front of every model you run or rent.",
)
app.add_typer(accounts.app, name="accounts")
app.add_typer(projects.app, name="projects")
app.add_typer(keys.app, name="keys")
app.add_typer(models.app, name="models")
app.add_typer(usage.app, name="usage")
app.add_typer(prices.app, name="prices")
app.add_typer(ledger.app, name="ledger")
app.add_typer(alerts.app, name="alerts")
app.add_typer(statements.app, name="statements")
app.add_typer(peppers.app, name="peppers")


@app.command()
@command
def up(
    state: StateOption = None,
    port: Annotated[int, typer.Option(help="Port on loopback; 0 takes a free one.", min=0, max=65535)] = PORT_DEFAULT,
    manifests: Annotated[
        list[Path] | None,
        typer.Option(
            "--file", "-f", metavar="MANIFEST", help="AIModel to serve (repeatable).", show_default="demo model"
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once it is ready; it runs on.")] = False,
    postgres_url: Annotated[
        str | None, typer.Option(envvar="UPLION_POSTGRES_URL", help="Use this Postgres, not an embedded one.")
    ] = None,
    redis_url: Annotated[
        str | None, typer.Option(envvar="UPLION_REDIS_URL", help="Use this Redis or Valkey, not an embedded one.")
    ] = None,
    nats_url: Annotated[
        str | None, typer.Option(envvar="UPLION_NATS_URL", help="Use this NATS, not an embedded one.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes of authz, and of the router.", min=1, max=32)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Start everything and wait until it answers; Ctrl-C ends it."""
    from cli.local import lifecycle

    settings = StackSettings(
        state=(state or default_state()).expanduser().absolute(),
        port=port,
        manifests=tuple(path.absolute() for path in manifests or ()),
        postgres_url=postgres_url,
        redis_url=redis_url,
        nats_url=nats_url,
        processes=processes,
    )
    lifecycle.up(settings, detach=detach, as_json=as_json)


@app.command()
@command
def down(state: StateOption = None, as_json: JsonOption = False) -> None:
    """Stop what `uplion up` started; what is running may finish, and data stays."""
    from cli.local import lifecycle

    folder = state_of(state)
    ran = lifecycle.down(folder)
    if as_json:
        print_json({"stopped": ran, "state_dir": str(folder.folder)})
    else:
        typer.echo("stopped" if ran else f"nothing was running with the state folder {folder.folder}")


@app.command()
@command
def status(state: StateOption = None, as_json: JsonOption = False) -> None:
    """Show every part: health, process, memory, address. Exits with 1 when one is not healthy, 3 when nothing runs."""
    from cli.local import parts

    found = parts.status(state_of(state))
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found['status']}  {found['base_url'] or ''}  {found['message']}".rstrip())
        rows = [
            (
                part["name"],
                "yes" if part["healthy"] else "NO",
                part["status"],
                part["pid"],
                None if part["memory_bytes"] is None else round(part["memory_bytes"] / (1 << 20)),
                part["address"],
                part["restarts"],
                part["message"] or (f"last restart: {part['last_end']}" if part.get("last_end") else ""),
            )
            for part in found["parts"]
        ]
        if rows:
            print_table(("part", "healthy", "status", "pid", "memory MB", "address", "restarts", "message"), rows)
    if not found["healthy"]:
        raise typer.Exit(1 if found["parts"] else EXIT_NOT_RUNNING)


@app.command()
@command
def logs(
    part: Annotated[
        str | None, typer.Argument(help="One part, as `uplion status` names it; all when left out.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", help="Lines of each log to begin with.", min=0)] = 50,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the logs of the parts."""
    from cli.local import parts

    for name, line in parts.log_lines(state_of(state), part, last=last, follow=follow):
        parts.print_log(name, line, as_json=as_json, named=part is None)


@app.command()
@command
def explain(
    request_id: Annotated[str, typer.Argument(help="x-request-id of its answer.")],
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what became of a request: why it was refused, by which rule, or what was billed for each attempt."""
    from cli.client.connection import admin
    from cli.commands import explanation

    with admin(state_of(state)) as api:
        found = explanation.request(api, request_id)
    if as_json:
        print_json(found)
    else:
        for line in explanation.sentences(found):
            typer.echo(line)


@app.command()
@command
def reconcile(
    last: Annotated[bool, typer.Option("--last", help="Show the last run instead of making one.")] = False,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare stream, ledger, rollups, balances, spending and Valkey's counters. Exits with 1 on any difference."""
    from cli.client.connection import admin
    from cli.commands import reconciliation

    with admin(state_of(state)) as api:
        found = reconciliation.report(api, last=last)
    if as_json:
        print_json(found)
    else:
        if found["differences"]:
            rows = [[each[name] for name in reconciliation.COLUMNS] for each in found["differences"]]
            print_table(reconciliation.COLUMNS, rows)
        typer.echo(reconciliation.sentence(found))
    if not found["clean"]:
        raise typer.Exit(1)


@app.command()
@command
def chat(
    message: Annotated[str | None, typer.Argument(help="Ask once; left out: a conversation.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Whom to talk to.", show_default="the first")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message, before the first turn.")] = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Talk to a model in the terminal; the answer streams."""
    from cli import chat

    folder = state_of(state)
    address = running(folder)["grpc_address"]
    key = folder.first_key("api_key")
    if model is None:
        available = chat.available_models(address, key)
        if not available:
            raise CommandError("no model is there; apply one: uplion models apply -f MANIFEST")
        model = available[0]
    conversation = chat.Conversation(address, key, model, system)
    if message is None:
        chat.talk(conversation, as_json=as_json)
    else:
        chat.say(conversation, message, as_json=as_json)


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
