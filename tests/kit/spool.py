"""What lies in a spool's folder, without taking it."""

import sqlite3
from pathlib import Path


def spooled(folder: Path) -> int:
    """How many records of all processes have not been published yet."""
    count = 0
    for path in folder.glob("usage.*.sqlite3"):
        database = sqlite3.connect(path, timeout=10)
        try:
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'records'").fetchall():
                count += database.execute("SELECT count(*) FROM records").fetchone()[0]
        finally:
            database.close()
    return count
