"""`uplion ledger`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.options import JsonOption, StateOption, state_of
from cli.output import CommandError, command, print_json, print_table, write_file

app = typer.Typer(no_args_is_help=True, help="Export the ledger, and verify that it is unchanged.")

_KEY_BYTES = 32


@app.command("key")
@command
def key(state: StateOption = None, as_json: JsonOption = False) -> None:
    """Show the public keys that sign the ledger's daily roots, the newest first. Keep them where you verify."""
    from cli.client import billing
    from cli.client.connection import admin

    with admin(state_of(state)) as api:
        keys = billing.ledger_keys(api)
    if as_json:
        print_json(keys)
    else:
        print_table(("key", "public key", "since"), [(each["id"], each["public_key"], each["since"]) for each in keys])


@app.command("export")
@command
def export(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to.")],
    account: Annotated[str | None, typer.Argument(help="The account's id.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All accounts.")] = False,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an account's hash chain, its rows and the signed roots to a file. It holds ids and counts, and no names."""
    from cli.client import billing
    from cli.client.connection import admin

    if (account is None) != everything:
        raise CommandError("name an account, or say --all")
    with admin(state_of(state)) as api:
        written_bytes = write_file(output, billing.export_ledger(api, account or ""))
    if as_json:
        print_json({"file": str(output), "bytes": written_bytes})
    else:
        typer.echo(f"{written_bytes} bytes in {output}")


@app.command("verify")
@command
def verify(
    file: Annotated[Path, typer.Argument(help="What `uplion ledger export` wrote.")],
    public_keys: Annotated[
        list[str] | None,
        typer.Option("--public-key", metavar="HEX", help="Believe no other (repeatable).", show_default="any"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a file, with no platform running. Exits with 1 and says where when anything was changed."""
    from cli.ledger_verification import verify

    try:
        keys = [bytes.fromhex(text) for text in public_keys or ()]
    except ValueError:
        keys = [b""]
    if any(len(each) != _KEY_BYTES for each in keys):
        raise CommandError(f"a public key has {2 * _KEY_BYTES} hexadecimal digits")
    try:
        with open(file, encoding="utf-8", errors="replace") as lines:
            report = verify(lines, keys)
    except OSError as problem:
        raise CommandError(f"{file} cannot be read: {problem.strerror}") from problem
    if as_json:
        print_json({"valid": not report.problems, **asdict(report)})
    else:
        for sentence in report.problems:
            typer.echo(sentence, err=True)
        typer.echo(
            f"{'NOT VALID' if report.problems else 'valid'}: {report.rows} rows in {report.links} links of"
            f" {report.accounts} accounts, {report.roots} daily roots"
        )
        if report.rows_from:
            typer.echo(
                f"months before {report.rows_from} were dropped: {report.dropped_links} links by their digests alone"
            )
        if report.unsigned_links:
            signed = f"the newest root ({report.signed_until})" if report.signed_until else "any root"
            typer.echo(f"{report.unsigned_links} links are younger than {signed}")
        if report.keys and not keys:
            typer.echo(f"signed by {', '.join(report.keys)}: compare it with the key you noted (uplion ledger key)")
    if report.problems:
        raise typer.Exit(1)
