"""What commands print: tables and sentences for people, JSON for programs."""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

import typer

from stack.errors import StackError

P = ParamSpec("P")
R = TypeVar("R")

JsonObject: TypeAlias = dict[str, Any]  # as --json prints it

EXIT_FAILED = 1


class CommandError(Exception):
    """A command failed: one sentence and an exit code."""

    def __init__(self, sentence: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Turns expected failures into one sentence on stderr (and an object on stdout with --json) and an exit code."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (CommandError, StackError) as problem:
            if kwargs.get("as_json"):
                print_json({"error": str(problem)})
            typer.echo(f"uplion: {problem}", err=True)
            raise typer.Exit(problem.exit_code if isinstance(problem, CommandError) else EXIT_FAILED) from problem
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:  # `uplion logs | head`
            sys.stderr.close()
            raise typer.Exit(0) from None

    return wrapped


def print_json(value: object) -> None:
    """One object, on one line for programs and indented for a terminal."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None), flush=True)


def report(value: object, sentence: str, *, as_json: bool) -> None:
    """Prints the result of a command, as JSON or as a sentence."""
    if as_json:
        print_json(value)
    else:
        typer.echo(sentence)


def print_facts(facts: Mapping[str, object]) -> None:
    """One object: a line for each fact that it has."""
    texts = {name.replace("_", " "): _cell(value) for name, value in facts.items() if value not in (None, "", [], {})}
    width = max(map(len, texts), default=0)
    for name, text in texts.items():
        print(f"{name:{width}}  {text}")


def print_rows(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """A table of objects: these of their facts."""
    print_table([name.replace("_", " ") for name in columns], [[_cell(row[name]) for name in columns] for row in rows])


def _cell(value: object) -> object:
    """Lists and labels as one text."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def write_file(file: Path | None, pieces: Iterable[bytes]) -> int:
    """Writes pieces as they come, to standard output without a file; the bytes written. A file is there as a whole or
    not at all, and readable by its owner only."""
    if file is None:
        return sum(sys.stdout.buffer.write(piece) for piece in pieces)
    part = file.with_name(f".{file.name}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            written_bytes = sum(stream.write(piece) for piece in pieces)
        part.replace(file)
    except OSError as problem:
        raise CommandError(f"{file} cannot be written: {problem.strerror}") from problem
    finally:
        part.unlink(missing_ok=True)
    return written_bytes


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table: drawn in a terminal, tab-separated in a pipe."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for line in ([column.upper() for column in columns], *texts):
            print("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) or row[index] is None for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for line in texts:
        table.add_row(*(Text(cell) for cell in line))
    Console().print(table)
