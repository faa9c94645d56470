"""`uplion prices`."""

from datetime import datetime
from typing import Annotated

import typer

from cli.options import JsonOption, StateOption, state_of
from cli.output import command, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Set and list what models cost.")

_MILLION = "of a million tokens"


@app.command("set")
@command
def set_price(
    model: Annotated[str, typer.Argument(help="metadata.name of its manifest.")],
    prompt: Annotated[str, typer.Option("--input", metavar="AMOUNT", help=f"Prompt, {_MILLION}.")],
    output: Annotated[str, typer.Option(metavar="AMOUNT", help=f"Answer, {_MILLION}.")],
    currency: Annotated[str, typer.Option(help="Three letters, such as USD.")],
    cached: Annotated[
        str, typer.Option(metavar="AMOUNT", help=f"Prompt found in the cache, {_MILLION}.", show_default="as input")
    ] = "",
    cache_write: Annotated[
        str, typer.Option(metavar="AMOUNT", help=f"Prompt put into the cache, {_MILLION}.", show_default="as input")
    ] = "",
    reasoning: Annotated[
        str, typer.Option(metavar="AMOUNT", help=f"Reasoning, {_MILLION}.", show_default="as output")
    ] = "",
    request: Annotated[str, typer.Option(metavar="AMOUNT", help="Of each completed request.", show_default="0")] = "",
    gpu_second: Annotated[
        str, typer.Option(metavar="AMOUNT", help="Of each second of an engine.", show_default="0")
    ] = "",
    effective_from: Annotated[
        datetime | None, typer.Option(help="When it begins to hold, UTC; not in the past.", show_default="now")
    ] = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a model's price. Nothing that was billed changes: it is a new version, for what ends from then on."""
    from cli.client import billing
    from cli.client.connection import admin

    rates = {
        "input_per_million_tokens": prompt,
        "cached_per_million_tokens": cached,
        "cache_write_per_million_tokens": cache_write,
        "output_per_million_tokens": output,
        "reasoning_per_million_tokens": reasoning,
        "per_request": request,
        "per_gpu_second": gpu_second,
    }
    with admin(state_of(state)) as api:
        made = billing.create_price(api, model, currency, rates, effective_from)
    if as_json:
        print_json(made)
    else:
        typer.echo(f"version {made['version']} of the price of {model}, from {made['effective_from']}")


@app.command("list")
@command
def list_prices(
    model: Annotated[str, typer.Option(help="Only this model's.", show_default="all")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Also versions that another one replaced.")] = False,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """List prices, the newest version first."""
    from cli.client import billing
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        prices = list(billing.prices(api, model, current=not everything))
    if as_json:
        print_json(prices)
        return
    columns = {
        "model": "model",
        "currency": "currency",
        "input": "input_per_million_tokens",
        "cached": "cached_per_million_tokens",
        "cache write": "cache_write_per_million_tokens",
        "output": "output_per_million_tokens",
        "reasoning": "reasoning_per_million_tokens",
        "request": "per_request",
        "GPU second": "per_gpu_second",
        "from": "effective_from",
        "version": "version",
    }
    rows = [[*(price[name] for name in columns.values()), "yes" if price["in_force"] else "no"] for price in prices]
    print_table((*columns, "in force"), rows)
