"""The disk space that a stack needs, checked before anything is written or started."""

import os
from pathlib import Path

from stack.errors import StackError
from stack.settings import StackSettings

_MEGABYTE = 1 << 20
# A start writes 1 MB. The rest is room for the streams, counters, logs and spools of a day.
_ROOM_BYTES = 64 * _MEGABYTE
# What a first start needs beside that: initdb writes 40 MB, and Postgres stops when its log cannot grow to its bound.
_DATABASE_BYTES = 40 * _MEGABYTE
LOG_BYTES = 256 * _MEGABYTE  # Postgres' max_wal_size

HALF_MADE = "half-made"  # beside a database whose making has not ended


def check(settings: StackSettings) -> None:
    """Raises StackError when less is free where the state folder is, or will be, than this start needs."""
    needs = {"streams, counters and logs": _ROOM_BYTES}
    if settings.postgres_url is None and not _has_database(settings.state / "postgres"):
        needs |= {"a new database": _DATABASE_BYTES, "its write-ahead log": LOG_BYTES}
    free_bytes = _free_bytes(settings.state)
    needed_bytes = sum(needs.values())
    if free_bytes < needed_bytes:
        parts = ", ".join(f"{size // _MEGABYTE} MB for {name}" for name, size in needs.items())
        raise StackError(
            f"the disk of {settings.state} has {free_bytes // _MEGABYTE} MB free, where {needed_bytes // _MEGABYTE} MB"
            f" are needed ({parts}); free some, or choose a --state on a larger disk"
        )


def _has_database(folder: Path) -> bool:
    return (folder / "data" / "PG_VERSION").exists() and not (folder / HALF_MADE).exists()


def _free_bytes(folder: Path) -> int:
    """For an ordinary user, on the disk of a folder that may be yet to make."""
    while True:
        try:
            found = os.statvfs(folder)
        except FileNotFoundError:
            folder = folder.parent
        except OSError as error:
            raise StackError(f"the state folder {folder} cannot be used: {error.strerror}") from error
        else:
            return found.f_bavail * found.f_frsize
