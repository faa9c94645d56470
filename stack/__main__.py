"""`python -m stack`: a supervisor without a terminal, as `uplion up --detach` starts it.

It reads its settings from stdin: they may hold passwords, and everybody sees a command line.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from stack.errors import StackError
from stack.running import run
from stack.settings import StackSettings


def to_json(settings: StackSettings) -> str:
    """The settings as `python -m stack` reads them: one JSON object, of which `state` alone must be there."""
    return json.dumps(dataclasses.asdict(settings), default=str)


def from_json(text: str) -> StackSettings:
    """What `to_json` wrote."""
    values: dict[str, Any] = json.loads(text)
    values["state"] = Path(values["state"])
    values["manifests"] = tuple(Path(path) for path in values.get("manifests", ()))
    return StackSettings(**values)


def main() -> int:
    try:
        run(from_json(sys.stdin.read()))
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
