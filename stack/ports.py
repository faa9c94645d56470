"""Loopback ports for the inner parts of a stack.

Chosen below the range from which Linux takes the ports of outgoing connections, so that a part that restarts
finds its port free.
"""

import random
import socket
from collections.abc import Iterable, Mapping

from stack.errors import StackError

_FIRST, _LAST = 20_000, 32_000
_ATTEMPTS = 200


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def choose(names: Iterable[str], previous: Mapping[str, int], taken: int = 0) -> dict[str, int]:
    """A port for each name: the one it had before where that is still free, otherwise a free one; never `taken`."""
    chosen: dict[str, int] = {}
    for name in names:
        before, others = previous.get(name), {taken, *chosen.values()}
        chosen[name] = before if before and before not in others and is_free(before) else free_port(others)
    return chosen


def free_port(taken: Iterable[int] = ()) -> int:
    """A loopback port that no program listens on."""
    refused = set(taken)
    for _ in range(_ATTEMPTS):
        port = random.randint(_FIRST, _LAST)  # noqa: S311 - not a secret
        if port not in refused and is_free(port):
            return port
    raise StackError(f"no free port between {_FIRST} and {_LAST}; end some programs and try again")
