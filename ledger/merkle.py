"""Merkle roots: a day's root over the heads of all accounts' hash chains, and the bytes that are hashed and signed.

The heads at a day's end (the last link recorded before midnight, UTC) are sorted by account (by code point) and hashed
as a Merkle tree as in RFC 6962: a leaf is SHA-256(0x00 || account || 0x00 || link in decimal || 0x00 || digest), a node
SHA-256(0x01 || left || right), and the left half is the largest power of two that leaves something for the right one.
So one account's head can be proven without revealing the others.

The signature (Ed25519) is over `message`. Each root holds the previous one, so none can be left out.
"""

from collections.abc import Sequence
from datetime import date
from hashlib import sha256
from typing import NamedTuple

FIRST_PREVIOUS = bytes(32)
EMPTY = sha256(b"").digest()
_LEFT, _RIGHT = "left", "right"

# The heads at a moment, as SQL: billing signs by it, and control proves by it.
HEADS = """
    SELECT heads.account, head.link, head.digest FROM ledger_heads AS heads, LATERAL (
        SELECT link, digest FROM ledger_chain WHERE account = heads.account AND record_time < $1
        ORDER BY link DESC LIMIT 1
    ) AS head ORDER BY heads.account COLLATE "C"
"""


class Head(NamedTuple):
    """The last link of an account's chain."""

    account: str
    link: int
    digest: bytes


Step = tuple[str, bytes]  # the side of the sibling, and its hash


def leaf(head: Head) -> bytes:
    """The hash of a head."""
    return sha256(b"\0" + head.account.encode() + b"\0" + str(head.link).encode() + b"\0" + head.digest).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """The hash of all leaves in their order."""
    if not leaves:
        return EMPTY
    if len(leaves) == 1:
        return leaves[0]
    middle = _middle(len(leaves))
    return _node(root(leaves[:middle]), root(leaves[middle:]))


def path(leaves: Sequence[bytes], index: int) -> list[Step]:
    """The audit path from a leaf to the root, lowest step first."""
    if len(leaves) == 1:
        return []
    middle = _middle(len(leaves))
    if index < middle:
        return [*path(leaves[:middle], index), (_RIGHT, root(leaves[middle:]))]
    return [*path(leaves[middle:], index - middle), (_LEFT, root(leaves[:middle]))]


def follow(start: bytes, steps: Sequence[Step]) -> bytes:
    """The root that an audit path leads to. Raises ValueError for an unknown side."""
    for side, other in steps:
        if side not in (_LEFT, _RIGHT):
            raise ValueError(f"no side {side!r}")
        start = _node(other, start) if side == _LEFT else _node(start, other)
    return start


def message(day: date, accounts: int, value: bytes, previous: bytes) -> bytes:
    """The bytes that are signed."""
    return f"uplion ledger root 1\n{day}\n{accounts}\n{value.hex()}\n{previous.hex()}\n".encode()


def key_id(public_key: bytes) -> str:
    """The id of a public key: the first 16 hex digits of its hash."""
    return sha256(public_key).hexdigest()[:16]


def _middle(count: int) -> int:
    return 1 << ((count - 1).bit_length() - 1)


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()
