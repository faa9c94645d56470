"""`uplion statements`."""

from typing import Annotated

import typer

from cli.options import JsonOption, StateOption, state_of
from cli.output import command, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Show what accounts owe by month.")


@app.command("show")
@command
def show(
    account: Annotated[str, typer.Argument(help="The account's id.")],
    month: Annotated[str, typer.Argument(help="Such as 2026-11.")],
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an account's month: what each key used of each model, and what it cost."""
    from cli.client import billing
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        found = billing.statement(api, account, month)
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found['account_name']} ({found['account']}), {month}{'' if found['final'] else ', not final'}\n")
    rows = [
        (line["project"], line["key"], line["model"], charge["class"], charge["quantity"], charge["cost"], currency)
        for line in found["lines"]
        for currency in (line["currency"] or "(no price)",)
        for charge in line["charges"]
    ]
    rows += [
        ("", "", "total", "", "", total["cost"], total["currency"]) for total in found["totals"] if total["currency"]
    ]
    print_table(("project", "key", "model", "class", "quantity", "cost", "currency"), rows)
    if found["unpriced_requests"]:
        typer.echo(f"\nwithout a price: {found['unpriced_tokens']} tokens of {found['unpriced_requests']} requests")
    head = found["closing_head"]
    typer.echo(f"\nhash chain: link {head['link']}, {head['digest']}")
