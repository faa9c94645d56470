"""The spool: a folder where records rest that nobody could take yet; they outlive the process, and the machine.

A process writes files of its own and holds their locks. A file whose lock is free belongs to a process that has ended:
whoever gets the lock goes on with it, so the folder may be shared by all processes of a host, and no file is ever in
two hands. A file is a row of records, each behind its length and its CRC-32; what a kill left of a last one is ignored.
"""

import fcntl
import itertools
import logging
import os
import shutil
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 4 << 20  # of a file before the next one is begun: what is sent again at most after a crash
_HEADER = struct.Struct("<II")  # bytes of the record, their CRC-32
_SUFFIX = ".spool"
_BAD_SUFFIX = ".bad"


class SpoolFullError(OSError):
    """The folder holds as much as it may."""


class Segment:
    """One file, locked: either being written, or complete and to be sent."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._bytes = os.fstat(descriptor).st_size
        self._broken = False

    @property
    def is_full(self) -> bool:
        """No further record may follow."""
        return self._broken or self._bytes >= SEGMENT_BYTES

    def append(self, data: bytes) -> None:
        """On disk when it returns; raises OSError, and is then as it was before."""
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fdatasync(self._descriptor)
        except OSError:
            self._broken = True  # unless it can be mended: nothing may follow half a record
            os.ftruncate(self._descriptor, self._bytes)
            self._broken = False
            raise
        self._bytes += len(data)

    def records(self) -> list[bytes]:
        """All of it, up to the first record that is not whole."""
        data = self.path.read_bytes()
        found: list[bytes] = []
        at = 0
        while at + _HEADER.size <= len(data):
            length, checksum = _HEADER.unpack_from(data, at)
            record = data[at + _HEADER.size : at + _HEADER.size + length]
            if not length or len(record) < length:
                break
            if zlib.crc32(record) != checksum:
                self.set_aside(f"wrong checksum at {at}")
                break
            found.append(record)
            at += _HEADER.size + length
        return found

    def set_aside(self, why: str) -> None:
        """Something in it cannot be read, and no kill explains that: a copy stays for whoever wants to look."""
        copy = self.path.with_suffix(_BAD_SUFFIX)
        logger.error("spool file is damaged", extra={"copy": str(copy), "why": why})
        shutil.copyfile(self.path, copy)

    def remove(self) -> None:
        """All of it is where it belongs."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Gives the lock back; the file, unless removed, is anybody's."""
        os.close(self._descriptor)


class Spool:
    """This process' part of the folder, and what dead ones left there. Every method may block, and is safe to call
    from any thread.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._names = (f"{time.time_ns()}-{os.getpid()}-{number}{_SUFFIX}" for number in itertools.count(1))
        self._writing: Segment | None = None
        self._complete: deque[Segment] = deque()
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def size(self) -> int:
        """Bytes in the folder, of all processes."""
        total = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                try:
                    total += entry.stat().st_size if entry.name.endswith(_SUFFIX) else 0
                except FileNotFoundError:
                    continue  # somebody has just sent it
        return total

    def append(self, records: Sequence[bytes]) -> None:
        """Writes them all, durably; raises SpoolFullError or another OSError, and has then written none."""
        data = b"".join(_HEADER.pack(len(record), zlib.crc32(record)) + record for record in records)
        if self.size() + len(data) > self._limit_bytes:
            raise SpoolFullError(f"{self._folder} holds as much as it may")
        with self._lock:
            if self._writing is not None and self._writing.is_full:
                self._complete.append(self._writing)
                self._writing = None
            if self._writing is None:
                self._writing = self._create()
            self._writing.append(data)

    def take(self) -> Segment | None:
        """The next file to send: of this process, oldest first, else of one that has ended. Nothing is added to it any
        more; the caller removes it, or keeps it.
        """
        with self._lock:
            if self._complete:
                return self._complete.popleft()
            if self._writing is not None:
                segment, self._writing = self._writing, None
                return segment
            return self._adopt()

    def close(self) -> None:
        """Leaves what is there to the next process."""
        with self._lock:
            if self._writing is not None:
                self._complete.append(self._writing)
                self._writing = None
            while self._complete:
                self._complete.popleft().close()

    def _create(self) -> Segment:
        while True:
            path = self._folder / next(self._names)
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            if _lock(descriptor, path):  # else somebody looking for work was faster: it takes the empty file away
                _sync_folder(self._folder)
                return Segment(path, descriptor)

    def _adopt(self) -> Segment | None:
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            if _lock(descriptor, path):
                return Segment(path, descriptor)
        return None


def _lock(descriptor: int, path: Path) -> bool:
    """Whether the file is ours now; closes it otherwise. One that was removed meanwhile is nobody's."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    if os.fstat(descriptor).st_nlink:
        return True
    os.close(descriptor)
    return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
