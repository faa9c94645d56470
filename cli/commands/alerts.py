"""`uplion alerts`."""

from typing import Annotated

import typer

from cli.options import JsonOption, StateOption, state_of
from cli.output import command, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Show what billing noticed about money.")


@app.command("list")
@command
def list_alerts(
    account: Annotated[str, typer.Option(help="Only this account's.", show_default="all")] = "",
    last: Annotated[int, typer.Option("--last", "-n", help="Alerts to show.", min=1, max=1000)] = 100,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """List alerts, the newest first."""
    from cli.client import billing
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        alerts = billing.alerts(api, account, last)
    if as_json:
        print_json(alerts)
        return
    columns = ("create_time", "kind", "level", "account", "period", "message")
    names = ("time", "kind", "level", "account", "period", "message")
    print_table(names, [[alert[column] for column in columns] for alert in alerts])
