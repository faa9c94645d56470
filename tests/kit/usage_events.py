"""What tests ask of usage events on their way: of the USAGE stream, and of a spool's folder."""

import sqlite3
from pathlib import Path

import nats.errors

from common import names
from messaging.bus import Bus


async def all_acknowledged(bus: Bus) -> bool:
    """Whether billing is done with every event that was published before.

    The consumer's `num_pending` alone does not say so: the server acknowledges a message before it counts it there.
    """
    try:
        last = (await bus.js.stream_info(names.STREAM_USAGE)).state.last_seq
        info = await bus.js.consumer_info(names.STREAM_USAGE, names.CONSUMER_BILLING)
    except (nats.errors.Error, TimeoutError):  # nobody is there yet, or a busy machine answers late
        return False
    delivered = info.delivered.stream_seq if info.delivered else 0
    return delivered >= last and not info.num_pending and not info.num_ack_pending


def spooled(folder: Path) -> int:
    """How many records of all processes have not been published yet; takes none."""
    count = 0
    for path in folder.glob("usage.*.sqlite3"):
        database = sqlite3.connect(path, timeout=10)
        try:
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'records'").fetchall():
                count += database.execute("SELECT count(*) FROM records").fetchone()[0]
        finally:
            database.close()
    return count
