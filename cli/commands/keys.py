"""`uplion keys`."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from cli.options import JsonOption, LabelOption, LimitOption, StateOption, duration_of, labels_of, state_of
from cli.output import command, print_facts, print_json, print_rows, report

app = typer.Typer(no_args_is_help=True, help="Create, change, rotate and end keys.")

_COLUMNS = (
    *("id", "name", "account", "project", "state", "scopes", "limits"),
    *("last_four", "pepper_id", "last_used_time", "expire_time", "create_time"),
)
_CLEARABLE = "limits|labels|models|tiers|networks|expire_time"
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The key's public id.")]
ModelOption = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="GLOB", help="A model it may use, such as 'llama-*' (repeatable)."),
]
TierOption = Annotated[
    list[str] | None, typer.Option("--tier", help="A tier it may ask for; the first is served unasked (repeatable).")
]
NetworkOption = Annotated[
    list[str] | None,
    typer.Option("--network", metavar="CIDR", help="Where its clients may be, such as 10.0.0.0/8 (repeatable)."),
]
ExpiryOption = Annotated[float | None, typer.Option("--expires-in-days", min=0, help="From then on it is refused.")]


@app.command("create")
@command
def create(
    name: Annotated[str | None, typer.Option(help="For people, to know it by.")] = None,
    account: Annotated[str | None, typer.Option(help="Who pays.", show_default="the project's, or default")] = None,
    project: Annotated[str | None, typer.Option(help="The project it belongs to.", show_default="none")] = None,
    scopes: Annotated[
        list[str] | None,
        typer.Option(
            "--scope", help="inference, admin:read, admin:write or admin (repeatable).", show_default="inference"
        ),
    ] = None,
    limits: LimitOption = None,
    labels: LabelOption = None,
    models: ModelOption = None,
    tiers: TierOption = None,
    networks: NetworkOption = None,
    expires_in_days: ExpiryOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a key and show it, once."""
    from cli.client import identity
    from cli.client.connection import admin
    from cli.limit_text import messages

    desired = identity.Desired(
        name=name,
        account=account,
        project=project,
        scopes=scopes,
        limits=messages(limits),
        labels=labels_of(labels),
        models=models,
        tiers=tiers,
        networks=networks,
        expire_time=_in_days(expires_in_days),
    )
    with admin(state_of(state)) as api:
        made = identity.create_key(api, desired)
    report(made, made["key"], as_json=as_json)
    if not as_json:
        typer.echo(f"id {made['id']}; this is the only time that the key is shown", err=True)


@app.command("list")
@command
def list_keys(
    account: Annotated[str, typer.Option(help="Only this account's.", show_default="all")] = "",
    project: Annotated[str, typer.Option(help="Only this project's.", show_default="all")] = "",
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """List keys, without their secrets, the oldest first."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        found = list(identity.keys(api, account, project))
    if as_json:
        print_json(found)
    else:
        print_rows(_COLUMNS, found)


@app.command("show")
@command
def show(key_id: IdArgument, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Show all of a key but its secret."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        found = identity.key(api, key_id)
    if as_json:
        print_json(found)
    else:
        print_facts(found)


@app.command("update")
@command
def update(
    key_id: IdArgument,
    name: Annotated[str | None, typer.Option(help="Its new name.", show_default="unchanged")] = None,
    limits: LimitOption = None,
    labels: LabelOption = None,
    models: ModelOption = None,
    tiers: TierOption = None,
    networks: NetworkOption = None,
    expires_in_days: ExpiryOption = None,
    clear: Annotated[
        list[str] | None,
        typer.Option("--clear", metavar=_CLEARABLE, help="Take away all of it (repeatable).", show_default="none"),
    ] = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a key; it applies within a second."""
    from cli.client import identity
    from cli.client.connection import admin
    from cli.limit_text import messages

    desired = identity.Desired(
        name=name,
        limits=messages(limits),
        labels=labels_of(labels),
        models=models,
        tiers=tiers,
        networks=networks,
        expire_time=_in_days(expires_in_days),
    )
    with admin(state_of(state)) as api:
        changed = identity.update_key(api, key_id, desired, clear or ())
    report(changed, f"changed {changed['id']}", as_json=as_json)


@app.command("rotate")
@command
def rotate(
    key_id: IdArgument,
    overlap: Annotated[str, typer.Option(help="How long the old key still works: 90s, 30m, 24h, 7d; 0: not.")] = "24h",
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a key like another, show it, once, and let the old one end when the overlap is over."""
    from cli.client import identity
    from cli.client.connection import admin

    seconds = duration_of(overlap)
    with admin(state_of(state)) as api:
        made = identity.rotate_key(api, key_id, seconds)
    report(made, made["key"], as_json=as_json)
    if not as_json:
        end = made["replaced"]["expire_time"]
        typer.echo(f"id {made['id']}; this is the only time that the key is shown; {key_id} ends {end}", err=True)


@app.command("suspend")
@command
def suspend(key_id: IdArgument, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Refuse a key until it is activated."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        changed = identity.update_key(api, key_id, identity.Desired(state=identity.SUSPENDED))
    report(changed, f"suspended {changed['id']}", as_json=as_json)


@app.command("activate")
@command
def activate(key_id: IdArgument, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Let a suspended key work again."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        changed = identity.update_key(api, key_id, identity.Desired(state=identity.ACTIVE))
    report(changed, f"activated {changed['id']}", as_json=as_json)


@app.command("revoke")
@command
def revoke(key_id: IdArgument, state: StateOption = None, as_json: JsonOption = False) -> None:
    """End a key everywhere, at once and for ever."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        revoked = identity.revoke_key(api, key_id)
    report(revoked, f"revoked {revoked['id']}", as_json=as_json)


@app.command("delete")
@command
def delete(key_id: IdArgument, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Remove a revoked or expired key from the lists; what it used stays in the ledger."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        identity.delete_key(api, key_id)
    report({"deleted": key_id}, f"deleted {key_id}", as_json=as_json)


def _in_days(days: float | None) -> datetime | None:
    return None if days is None else datetime.now(UTC) + timedelta(days=days)
