"""The spool: a SQLite database of records that could not be sent yet, shared by a host's processes (ADR 6).

A record is durable once `append` returns. `take` leases records to one process at a time; the leases of a process that
ends without `close` expire, so that another one sends what it had taken. A damaged record is kept in the table
`damaged`; a damaged database is renamed to `*.bad`, after what can be read of it has moved to a new one.
"""

import errno
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from messaging import old_spool

logger = logging.getLogger(__name__)

LEASE_SECONDS = 10.0  # several times what sending a batch takes
_BUSY_SECONDS = 5.0  # for another process' transaction to end
_ROW_BYTES = 24  # what a record takes beside its own bytes, also in the triggers
_UNREADABLE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_ERROR_NUMBERS = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_BUSY: errno.EBUSY}
# Ids are never used again, nor by a later database of the folder (they begin at its time in microseconds): a process
# may remove what it had leased too late, and must remove nothing else then.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT, leased_until REAL NOT NULL DEFAULT 0, crc INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS damaged (id INTEGER PRIMARY KEY, why TEXT NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS held (bytes INTEGER NOT NULL);
INSERT INTO held SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM held);
CREATE TRIGGER IF NOT EXISTS record_added AFTER INSERT ON records
    BEGIN UPDATE held SET bytes = bytes + 24 + length(new.data); END;
CREATE TRIGGER IF NOT EXISTS record_removed AFTER DELETE ON records
    BEGIN UPDATE held SET bytes = bytes - 24 - length(old.data); END;
"""
_FIRST_ID = (
    "INSERT INTO sqlite_sequence SELECT 'records', {}"
    " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'records');"
)


class SpoolFullError(OSError):
    """The spool holds as many bytes as it may."""


class Record(NamedTuple):
    """A record that this process has leased."""

    id: int
    data: bytes


class Spool:
    """One process' connection to the spool of a folder. Every method may block, is safe to call from any thread, and
    raises OSError when the disk or the database fails.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._closed = False
        self._open: sqlite3.Connection | None = None
        self._path = folder
        self._inode = (0, 0)
        self._leased: set[int] = set()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def size(self) -> int:
        """Bytes that the records of all processes take."""
        with self._lock:
            if not self._exists():
                return 0
            with self._database() as database:
                return _held_bytes(database)

    def append(self, records: Sequence[bytes]) -> None:
        """Writes them all, durably; raises SpoolFullError or another OSError, and has then written none."""
        with self._lock:
            self._append(records, self._limit_bytes)

    def take(self, most: int) -> list[Record]:
        """Leases the oldest records that no process has; none when there are none."""
        with self._lock:
            self._adopt_old_files()
            if not self._exists():
                return []
            with self._database() as database, _transaction(database):
                now = time.time()
                rows = database.execute(
                    "UPDATE records SET leased_until = ? WHERE id IN"
                    " (SELECT id FROM records WHERE leased_until NOT BETWEEN ? AND ? ORDER BY id LIMIT ?)"
                    " RETURNING id, crc, data",
                    (now + LEASE_SECONDS, now, now + LEASE_SECONDS, most),
                ).fetchall()
                sound = [Record(id_, data) for id_, crc, data in sorted(rows) if zlib.crc32(data) == crc]
                damaged = [id_ for id_, crc, data in rows if zlib.crc32(data) != crc]
                _set_aside(database, damaged, "wrong checksum")
            self._leased.update(record.id for record in sound)
            return sound

    def remove(self, records: Sequence[Record]) -> None:
        """They have been sent."""
        with self._lock:
            with self._database() as database:
                with _transaction(database):
                    database.executemany("DELETE FROM records WHERE id = ?", [(record.id,) for record in records])
                if not _held_bytes(database):
                    # Not `execute`: it would give back one page only.
                    database.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")
            self._leased.difference_update(record.id for record in records)

    def give_back(self, records: Sequence[Record]) -> None:
        """They could not be sent: any process may take them."""
        with self._lock:
            self._give_back({record.id for record in records})

    def set_aside(self, record: Record, why: str) -> None:
        """The record cannot be used, by this version at least: it stays in the table `damaged`."""
        with self._lock, self._database() as database, _transaction(database):
            _set_aside(database, [record.id], why)

    def close(self) -> None:
        """Gives back what is leased. A call that another thread makes afterwards raises OSError."""
        with self._lock:
            try:
                if self._leased:
                    self._give_back(self._leased)
            finally:
                self._closed = True
                self._disconnect()

    def _give_back(self, ids: set[int]) -> None:
        with self._database() as database, _transaction(database):
            database.executemany("UPDATE records SET leased_until = 0 WHERE id = ?", [(id_,) for id_ in ids])
        self._leased -= ids

    def _append(self, records: Sequence[bytes], limit_bytes: int | None) -> None:
        rows = [(zlib.crc32(data), data) for data in records]
        size = sum(len(data) + _ROW_BYTES for data in records)
        while True:
            with self._database() as database, _transaction(database):
                if limit_bytes is not None and _held_bytes(database) + size > limit_bytes:
                    raise SpoolFullError(errno.ENOSPC, f"the spool {self._folder} holds as much as it may")
                database.executemany("INSERT INTO records (crc, data) VALUES (?, ?)", rows)
            if self._is_current():  # else another process has renamed the database since: written twice is not lost
                return

    def _adopt_old_files(self) -> None:
        for file in old_spool.abandoned(self._folder):
            with file:
                if records := file.records():
                    self._append(records, None)
                file.remove()

    # --- the connection --------------------------------------------------------------------------------------------

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """The connection to the database in use. A database that cannot be read is replaced, and the error raised."""
        try:
            if self._open is None or not self._is_current():
                self._connect()
            assert self._open is not None
            yield self._open
        except sqlite3.Error as problem:
            self._disconnect()  # after an I/O error a connection may not be used again
            code = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code in _UNREADABLE:
                self._replace(str(problem))
            raise OSError(_ERROR_NUMBERS.get(code, errno.EIO), f"{self._path}: {problem}") from problem

    def _exists(self) -> bool:
        """Whether anything was ever spooled here; else no database need be made."""
        return self._open is not None or bool(_generations(self._folder, "sqlite3"))

    def _is_current(self) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._inode

    def _connect(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, f"the spool {self._folder} is closed here")
        self._disconnect()
        self._leased.clear()
        generation = max(_generations(self._folder, "sqlite3"), default=0)
        generation = generation or max(_generations(self._folder, "bad"), default=0) + 1
        self._path = self._folder / f"usage.{generation}.sqlite3"
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            database = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                _prepare(database)
            except sqlite3.OperationalError as problem:
                # Two that make the database at once may meet in a lock for which SQLite itself does not wait.
                database.close()
                if problem.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            except sqlite3.Error:
                database.close()
                raise
            break
        found = self._path.stat()
        self._open, self._inode = database, (found.st_dev, found.st_ino)

    def _disconnect(self) -> None:
        if self._open is not None:
            with suppress(sqlite3.Error):
                self._open.close()
            self._open = None

    def _replace(self, why: str) -> None:
        """Renames the database, and writes what can still be read of it into a new one."""
        records = _readable(self._path)
        bad = self._path.with_suffix(".bad")
        logger.error("spool is damaged", extra={"copy": str(bad), "why": why, "records": len(records)})
        with suppress(FileNotFoundError):  # else another process was faster
            os.rename(self._path, bad)
            for suffix in ("-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.rename(f"{self._path}{suffix}", f"{bad}{suffix}")
            if records:
                self._append(records, None)


def _generations(folder: Path, kind: str) -> list[int]:
    """The numbers of a folder's databases: a damaged one keeps its own, so that its log is never read into another."""
    return [int(path.name.split(".")[1]) for path in folder.glob(f"usage.*.{kind}")]


def _prepare(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA auto_vacuum = INCREMENTAL")
    database.execute("PRAGMA journal_mode = WAL").fetchall()
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA journal_size_limit = 4194304")
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'record_removed'").fetchall():
        first_id = time.time_ns() // 1000
        database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {_FIRST_ID.format(first_id)} COMMIT;")


def _held_bytes(database: sqlite3.Connection) -> int:
    (row,) = database.execute("SELECT bytes FROM held").fetchall()
    return int(row[0])


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _set_aside(database: sqlite3.Connection, ids: Sequence[int], why: str) -> None:
    for id_ in ids:
        logger.error("spooled record is damaged", extra={"record": id_, "why": why})
        database.execute("INSERT INTO damaged SELECT id, ?, data FROM records WHERE id = ?", (why, id_))
        database.execute("DELETE FROM records WHERE id = ?", (id_,))


def _readable(path: Path) -> list[bytes]:
    """The sound records of a damaged database, up to the first that cannot be read."""
    found: list[bytes] = []
    with suppress(sqlite3.Error):
        database = sqlite3.connect(path, timeout=_BUSY_SECONDS)
        try:
            for crc, data in database.execute("SELECT crc, data FROM records ORDER BY id"):
                if isinstance(data, bytes) and zlib.crc32(data) == crc:
                    found.append(data)
        finally:
            database.close()
    return found
