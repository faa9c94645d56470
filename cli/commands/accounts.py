"""`uplion accounts`."""

from typing import Annotated

import typer

from cli.options import JsonOption, LabelOption, LimitOption, StateOption, labels_of, state_of
from cli.output import CommandError, command, print_facts, print_json, print_rows, report

app = typer.Typer(no_args_is_help=True, help="Create and change accounts: who pays.")

_COLUMNS = ("id", "name", "state", "limits", "labels", "create_time")
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The account, such as acc_7h2k...")]
ClearOption = Annotated[
    list[str] | None,
    typer.Option("--clear", metavar="limits|labels", help="Take away all of them (repeatable).", show_default="none"),
]


@app.command("create")
@command
def create(
    name: Annotated[str, typer.Argument(help="For people, to know it by.")],
    limits: LimitOption = None,
    labels: LabelOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an account and print its id."""
    from cli.client import identity
    from cli.client.connection import admin
    from cli.limit_text import messages

    desired = identity.Desired(name=name, limits=messages(limits), labels=labels_of(labels))
    with admin(state_of(state)) as api:
        made = identity.create_account(api, desired)
    report(made, made["id"], as_json=as_json)


@app.command("list")
@command
def list_accounts(state: StateOption = None, as_json: JsonOption = False) -> None:
    """List accounts, the oldest first."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        found = list(identity.accounts(api))
    if as_json:
        print_json(found)
    else:
        print_rows(_COLUMNS, found)


@app.command("show")
@command
def show(account_id: IdArgument, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Show an account."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        found = identity.account(api, account_id)
    if as_json:
        print_json(found)
    else:
        print_facts(found)


@app.command("update")
@command
def update(
    account_id: IdArgument,
    name: Annotated[str | None, typer.Option(help="Its new name.", show_default="unchanged")] = None,
    limits: LimitOption = None,
    labels: LabelOption = None,
    clear: ClearOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change an account; it applies to its requests within a second."""
    from cli.client import identity
    from cli.client.connection import admin
    from cli.limit_text import messages

    desired = identity.Desired(name=name, limits=messages(limits), labels=labels_of(labels))
    with admin(state_of(state)) as api:
        changed = identity.update_account(api, account_id, desired, clear or ())
    report(changed, f"changed {changed['id']}", as_json=as_json)


@app.command("suspend")
@command
def suspend(account_id: IdArgument, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Refuse all keys of an account until it is activated."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        changed = identity.update_account(api, account_id, identity.Desired(state=identity.SUSPENDED))
    report(changed, f"suspended {changed['id']}", as_json=as_json)


@app.command("activate")
@command
def activate(account_id: IdArgument, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Let a suspended account's keys work again."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        changed = identity.update_account(api, account_id, identity.Desired(state=identity.ACTIVE))
    report(changed, f"activated {changed['id']}", as_json=as_json)


@app.command("erase")
@command
def erase(
    account_id: IdArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; it cannot be undone.")] = False,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget who an account is, for ever. Its keys end; usage, statements and the ledger stay under its id."""
    from cli.client import identity
    from cli.client.connection import admin

    if not yes:
        raise CommandError("this cannot be undone: names, labels and keys of the account are erased; say --yes")
    with admin(state_of(state)) as api:
        erased = identity.erase_account(api, account_id)
    report(erased, f"erased {erased['id']}", as_json=as_json)
