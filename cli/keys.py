"""`uplion keys`."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from cli.options import JsonOption, LimitOption, StateOption, state_of
from cli.output import command, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke keys.")


@app.command("create")
@command
def create(
    name: Annotated[str, typer.Option(help="For people, to know it by.")] = "",
    account: Annotated[str, typer.Option(help="Who pays.", show_default="default")] = "",
    scopes: Annotated[
        list[str] | None, typer.Option("--scope", help="inference or admin (repeatable).", show_default="inference")
    ] = None,
    limits: LimitOption = None,
    expires_in_days: Annotated[float | None, typer.Option(min=0, help="From then on it is refused.")] = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a key and show it, once."""
    from cli.admin import NewKey, admin
    from cli.limits import parse

    wanted = NewKey(
        name=name,
        account=account,
        scopes=tuple(scopes or ()),
        limits=tuple(parse(limit) for limit in limits or ()),
        expire_time=None if expires_in_days is None else datetime.now(UTC) + timedelta(days=expires_in_days),
    )
    with admin(state_of(state)) as api:
        created = api.create_key(wanted)
    if as_json:
        print_json(created)
    else:
        typer.echo(created["key"])
        typer.echo(f"id {created['id']}; this is the only time that the key is shown", err=True)


@app.command("list")
@command
def list_keys(
    account: Annotated[str, typer.Option(help="Only this account's.", show_default="all")] = "",
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """List keys, without their secrets."""
    from cli.admin import admin

    with admin(state_of(state)) as api:
        keys = list(api.keys(account))
    if as_json:
        print_json(keys)
        return
    columns = ("id", "name", "account", "state", "scopes", "last four", "created", "expires")
    fields = ("id", "name", "account", "state", "scopes", "last_four", "create_time", "expire_time")
    rows = [[",".join(key[name]) if name == "scopes" else key[name] for name in fields] for key in keys]
    print_table(columns, rows)


@app.command("revoke")
@command
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's public id.")],
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a key everywhere, at once and for ever."""
    from cli.admin import admin

    with admin(state_of(state)) as api:
        revoked = api.revoke_key(key_id)
    if as_json:
        print_json(revoked)
    else:
        typer.echo(f"revoked {revoked['id']}")
