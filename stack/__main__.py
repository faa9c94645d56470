"""`python -m stack`: a supervisor without a terminal, as `uplion up --detach` starts it."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from stack.errors import StackError
from stack.running import run
from stack.settings import StackSettings


def to_json(settings: StackSettings) -> str:
    """The settings as one argument of `python -m stack`."""
    return json.dumps(dataclasses.asdict(settings), default=str)


def from_json(text: str) -> StackSettings:
    """What `to_json` wrote."""
    values: dict[str, Any] = json.loads(text)
    values["state"] = Path(values["state"])
    values["manifests"] = tuple(Path(path) for path in values.get("manifests", ()))
    return StackSettings(**values)


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m stack", description=__doc__)
    arguments.add_argument("settings", help="the stack's settings as JSON; `state` is the only one that must be there")
    try:
        run(from_json(arguments.parse_args().settings))
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
