"""`uplion usage`."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.options import JsonOption, StateOption, state_of
from cli.output import command, print_json, print_table, write_file

app = typer.Typer(help="Show what was used and what it cost.")


class Grouping(StrEnum):
    """What rows of usage are made from."""

    account = "account"
    project = "project"
    key = "key"
    model = "model"
    tier = "tier"
    hour = "hour"
    day = "day"


class Order(StrEnum):
    """Which rows come first."""

    cost = "cost"
    tokens = "tokens"


class Format(StrEnum):
    """How an export is written."""

    csv = "csv"
    json = "json"
    focus = "focus"


FromOption = Annotated[
    datetime | None, typer.Option("--from", help="From this hour on, UTC.", show_default="the beginning")
]
ToOption = Annotated[datetime | None, typer.Option("--to", help="Before this hour, UTC.", show_default="now")]
AccountOption = Annotated[str, typer.Option(help="Only this account's.", show_default="all")]
ProjectOption = Annotated[str, typer.Option(help="Only this project's.", show_default="all")]
KeyOption = Annotated[str, typer.Option(help="Only this key's.", show_default="all")]
ModelOption = Annotated[str, typer.Option(help="Only this model's.", show_default="all")]
TierOption = Annotated[str, typer.Option(help="Only this tier's.", show_default="all")]


@app.callback(invoke_without_command=True)
@command
def usage(
    context: typer.Context,
    by: Annotated[Grouping | None, typer.Option(help="A row for each.", show_default="one row")] = None,
    top: Annotated[int, typer.Option(min=1, max=10_000, help="Most groups, the largest first.")] = 10_000,
    order: Annotated[
        Order | None, typer.Option(help="What is largest.", show_default="tokens; with --top cost")
    ] = None,
    start: FromOption = None,
    end: ToOption = None,
    account: AccountOption = "",
    project: ProjectOption = "",
    key: KeyOption = "",
    model: ModelOption = "",
    tier: TierOption = "",
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was used and what it cost; it is about a second old."""
    if context.invoked_subcommand is not None:
        return
    from cli.client import billing
    from cli.client.connection import admin

    chosen = billing.UsageFilter(account, project, key, model, tier, start, end)
    if order is None and top < 10_000:
        order = Order.cost
    with admin(state_of(state)) as api:
        rows = billing.usage(api, chosen, by.value if by else None, order.value if order else None, top)
    if as_json:
        print_json(rows)
        return
    cells = [
        (
            row["group"],
            row["requests"],
            row["input_tokens"],
            row["cached_tokens"],
            row["output_tokens"],
            f"{row['cost']} {row['currency']}" if row["currency"] else None,
            f"{row['unpriced_tokens']} tokens of {row['unpriced_requests']} requests"
            if row["unpriced_tokens"] or row["unpriced_requests"]
            else None,
        )
        for row in rows
    ]
    print_table((by.value if by else "usage", "requests", "input", "cached", "output", "cost", "unpriced"), cells)


@app.command("export")
@command
def export(
    form: Annotated[Format, typer.Option("--format", help="focus is CSV in the columns of FOCUS 1.2.")] = Format.csv,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to.", show_default="standard output")
    ] = None,
    start: FromOption = None,
    end: ToOption = None,
    account: AccountOption = "",
    project: ProjectOption = "",
    key: KeyOption = "",
    model: ModelOption = "",
    tier: TierOption = "",
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write usage to a file, a line for each hour, account, project, key, model and tier."""
    from cli.client import billing
    from cli.client.connection import admin

    chosen = billing.UsageFilter(account, project, key, model, tier, start, end)
    with admin(state_of(state)) as api:
        written_bytes = write_file(output, billing.export(api, chosen, form.value))
    if output is not None:
        written = {"file": str(output), "bytes": written_bytes}
        print_json(written) if as_json else typer.echo(f"{written_bytes} bytes in {output}")


@app.command("margin")
@command
def margin(
    gpu_hour_cost: Annotated[
        str, typer.Option(metavar="AMOUNT", help="What an hour of a worker costs, in the currency of the revenue.")
    ] = "",
    start: FromOption = None,
    end: ToOption = None,
    model: ModelOption = "",
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what models earned beside the time that their engines worked and were there."""
    from cli.client import billing
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        rows = billing.margin(api, model, start, end, gpu_hour_cost)
    if as_json:
        print_json(rows)
        return
    cells = [
        (
            row["model"],
            f"{row['revenue']} {row['currency']}" if row["currency"] else None,
            round(row["busy_seconds"], 1),
            round(row["available_seconds"], 1),
            None if row["idle_share"] is None else f"{row['idle_share']:.1%}",
            row["revenue_per_available_hour"],
            row["margin"],
        )
        for row in rows
    ]
    print_table(("model", "revenue", "busy s", "available s", "idle", "revenue per hour", "margin"), cells)
