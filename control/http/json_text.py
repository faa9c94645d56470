"""JSON text, read strictly: a name that an object gives twice is not lost, and no text makes the parser fail."""

import json
from dataclasses import dataclass
from typing import Final

from common.errors import Reason, UplionError

CONTENT_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Twice:
    """Stands for the value of a name that its object gives more than once."""


def read(data: bytes) -> object:
    """The value of a UTF-8 text, which may begin with a byte-order mark. Raises INVALID_REQUEST."""
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise _refused("is not UTF-8") from None
    except RecursionError:
        raise _refused("is nested too deeply") from None
    except json.JSONDecodeError as problem:
        raise _refused(f"is not JSON: {problem.msg}, at line {problem.lineno}, column {problem.colno}") from None
    except ValueError:  # an integer of thousands of digits
        raise _refused("holds a number that is too long") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                found[name] = Twice()
            seen.add(name)
    return found


def _refused(why: str) -> UplionError:
    return UplionError(Reason.INVALID_REQUEST, f"The body {why}.")
