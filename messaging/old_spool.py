"""Files of the spool before it was a database: read once, and removed when their records are in the database.

A process of that version writes files of its own and holds their locks; a file whose lock is free is abandoned. It is a
row of records, each behind its length and its CRC-32; a last one that is not whole was cut off by a kill.
"""

import fcntl
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("<II")  # bytes of the record, their CRC-32


class OldFile:
    """One file, locked until its block is left."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def records(self) -> list[bytes]:
        """All records up to the first that is not whole; of a damaged file a copy stays, as `*.bad`."""
        data = self._path.read_bytes()
        found: list[bytes] = []
        at = 0
        while at + _HEADER.size <= len(data):
            length, checksum = _HEADER.unpack_from(data, at)
            record = data[at + _HEADER.size : at + _HEADER.size + length]
            if not length or len(record) < length:
                break
            if zlib.crc32(record) != checksum:
                copy = self._path.with_suffix(".bad")
                logger.error("spool file is damaged", extra={"copy": str(copy), "why": f"wrong checksum at {at}"})
                shutil.copyfile(self._path, copy)
                break
            found.append(record)
            at += _HEADER.size + length
        return found

    def remove(self) -> None:
        """Its records are in the database."""
        self._path.unlink(missing_ok=True)


def abandoned(folder: Path) -> Iterator[OldFile]:
    """The files that no process writes any more, oldest first, each locked."""
    for path in sorted(folder.glob("*.spool")):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        if os.fstat(descriptor).st_nlink:
            yield OldFile(path, descriptor)
        else:  # removed by another process between opening and locking
            os.close(descriptor)
