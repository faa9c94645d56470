"""Embedding vectors in the form that run events carry."""

import math
import sys
from array import array
from collections.abc import Sequence


def unit_vector(values: Sequence[float]) -> bytes:
    """The vector scaled to length 1, as little-endian float32; a zero vector stays zero."""
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    unit = array("f", [value / length for value in values])
    if sys.byteorder == "big":
        unit.byteswap()
    return unit.tobytes()
