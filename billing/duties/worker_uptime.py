"""Worker uptime: worker seconds per model and hour, sampled from heartbeats, to compare idle time with revenue."""

import logging
import time
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from uplion.dispatch.v1.worker_state_pb2 import WorkerState

from common import names
from messaging.bus import Bus

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

logger = logging.getLogger(__name__)

EVERY_SECONDS = 10.0
_MODEL_CHARACTERS = 256
_ADD = """
    INSERT INTO worker_hourly AS hourly (hour, model, worker_seconds)
    SELECT date_trunc('hour', $1::timestamptz, 'UTC'), * FROM unnest($2::text[], $3::numeric[])
    ON CONFLICT (hour, model) DO UPDATE SET worker_seconds = hourly.worker_seconds + excluded.worker_seconds
"""


class WorkerUptime:
    """Adds the time since the last sample to the model of every worker whose heartbeat is current."""

    def __init__(self, bus: Bus, pool: "Pool") -> None:
        self._bus = bus
        self._pool = pool
        self._sampled_at: float | None = None

    async def sample(self) -> None:
        """The first sample counts nothing; after a gap (broker down) at most two intervals are counted."""
        workers = Counter(_model(entry.value or b"") for entry in await self._bus.snapshot(names.KV_WORKERS))
        del workers[""]
        now = time.monotonic()
        before, self._sampled_at = self._sampled_at, now
        if before is None or not workers:
            return
        seconds = Decimal(str(round(min(now - before, 2 * EVERY_SECONDS), 6)))
        models = sorted(workers)
        await self._pool.execute(_ADD, datetime.now(UTC), models, [seconds * workers[model] for model in models])


def _model(state: bytes) -> str:
    try:
        model = WorkerState.FromString(state).model
    except DecodeError:
        model = "\0"
    if model.isprintable() and len(model) <= _MODEL_CHARACTERS:
        return model
    logger.warning("worker state cannot be used")
    return ""
