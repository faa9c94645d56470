"""`uplion projects`."""

from typing import Annotated

import typer

from cli.options import JsonOption, LabelOption, LimitOption, StateOption, labels_of, state_of
from cli.output import command, print_facts, print_json, print_rows, report

app = typer.Typer(no_args_is_help=True, help="Create and change projects: parts of an account.")

_COLUMNS = ("id", "name", "account", "state", "limits", "labels", "create_time")
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The project, such as prj_7h2k...")]
ClearOption = Annotated[
    list[str] | None,
    typer.Option("--clear", metavar="limits|labels", help="Take away all of them (repeatable).", show_default="none"),
]


@app.command("create")
@command
def create(
    name: Annotated[str, typer.Argument(help="For people, to know it by.")],
    account: Annotated[str | None, typer.Option(help="Who pays.", show_default="default")] = None,
    limits: LimitOption = None,
    labels: LabelOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a project and print its id."""
    from cli.client import identity
    from cli.client.connection import admin
    from cli.limit_text import messages

    desired = identity.Desired(name=name, account=account, limits=messages(limits), labels=labels_of(labels))
    with admin(state_of(state)) as api:
        made = identity.create_project(api, desired)
    report(made, made["id"], as_json=as_json)


@app.command("list")
@command
def list_projects(
    account: Annotated[str, typer.Option(help="Only this account's.", show_default="all")] = "",
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """List projects, the oldest first."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        found = list(identity.projects(api, account))
    if as_json:
        print_json(found)
    else:
        print_rows(_COLUMNS, found)


@app.command("show")
@command
def show(project_id: IdArgument, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Show a project."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        found = identity.project(api, project_id)
    if as_json:
        print_json(found)
    else:
        print_facts(found)


@app.command("update")
@command
def update(
    project_id: IdArgument,
    name: Annotated[str | None, typer.Option(help="Its new name.", show_default="unchanged")] = None,
    limits: LimitOption = None,
    labels: LabelOption = None,
    clear: ClearOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a project; it applies to its requests within a second."""
    from cli.client import identity
    from cli.client.connection import admin
    from cli.limit_text import messages

    desired = identity.Desired(name=name, limits=messages(limits), labels=labels_of(labels))
    with admin(state_of(state)) as api:
        changed = identity.update_project(api, project_id, desired, clear or ())
    report(changed, f"changed {changed['id']}", as_json=as_json)


@app.command("suspend")
@command
def suspend(project_id: IdArgument, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Refuse all keys of a project until it is activated."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        changed = identity.update_project(api, project_id, identity.Desired(state=identity.SUSPENDED))
    report(changed, f"suspended {changed['id']}", as_json=as_json)


@app.command("activate")
@command
def activate(project_id: IdArgument, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Let a suspended project's keys work again."""
    from cli.client import identity
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        changed = identity.update_project(api, project_id, identity.Desired(state=identity.ACTIVE))
    report(changed, f"activated {changed['id']}", as_json=as_json)
