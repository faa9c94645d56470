"""A difference: two values that should be equal and are not."""

from typing import NamedTuple


class Difference(NamedTuple):
    """One finding of a check; all values as text, as in the message of the same name."""

    check: str
    subject: str
    expected: str
    found: str
