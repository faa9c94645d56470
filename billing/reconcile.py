"""Reconciliation: do stream, ledger, rollups, balances, spending and Valkey agree? On a schedule, and when asked.

What is on its way is no difference: the stream is believed up to what billing acknowledged, the ledger's sums are read
in one snapshot, and a counter that is raised after the commit is given time.
"""

import asyncio
import logging
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from google.protobuf import json_format
from nats.aio.msg import Msg
from uplion.billing.v1.reconciliation_pb2 import Difference as DifferenceMessage
from uplion.billing.v1.reconciliation_pb2 import Reconciliation

from billing import metrics, witness
from billing.comparing import compare_sums, oldest_hour
from billing.counters import Counters, compare_counters
from common import names
from messaging.bus import Bus

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

logger = logging.getLogger(__name__)

CHECKS = ("lost", "double", "dead", "hourly", "balances", "spending", "counters", "reservations")
_RECENT = timedelta(days=2)
_EVENTS_AT_ONCE = 200_000  # of a scheduled run; the next one goes on
_DIFFERENCES = 1_000
_KEPT_DAYS = 90
_STATEMENT_SECONDS = 300.0

_LAST_SEQUENCE = "SELECT stream_sequence FROM reconciliations ORDER BY id DESC LIMIT 1"
_ADD = "INSERT INTO reconciliations (run_time, stream_sequence, differences, report) VALUES ($1, $2, $3, $4)"
_FORGET = "DELETE FROM reconciliations WHERE run_time < now() - make_interval(days => $1)"


class Reconciler:
    """Compares, and keeps what it found."""

    def __init__(self, bus: Bus, pool: "Pool", counters: Counters) -> None:
        self._bus = bus
        self._pool = pool
        self._counters = counters
        self._one = asyncio.Lock()  # a second run at the same time would only cost

    async def scheduled(self) -> None:
        """The last two days, and the stream since the run before."""
        await self.run(whole=False)

    async def answer(self, message: Msg) -> None:
        """Somebody asks for a run: everything, and now. An empty answer: it could not be made."""
        try:
            report = await self.run(whole=True)
        except Exception:  # a message-consumer boundary: who asked hears that it failed
            logger.exception("reconciliation failed")
            await message.respond(b"")
        else:
            await message.respond(report.SerializeToString())

    async def run(self, *, whole: bool) -> Reconciliation:
        """One run. Raises what NATS, Postgres and Valkey raise."""
        async with self._one:
            report = await self._run(whole=whole)
        found = Counter(difference.check for difference in report.differences)
        for check in CHECKS:
            metrics.BILLING_DIFFERENCES.labels(check).set(found[check])
        metrics.BILLING_RECONCILED.set_to_current_time()
        level = logging.ERROR if found else logging.INFO
        logger.log(level, "reconciled", extra={"differences": dict(found), "stream_events": report.stream_events})
        return report

    async def _run(self, *, whole: bool) -> Reconciliation:
        report = Reconciliation(whole=whole)
        report.run_time.GetCurrentTime()
        began, now = time.monotonic(), datetime.now(UTC)
        after = 0 if whole else await self._pool.fetchval(_LAST_SEQUENCE) or 0
        said = await witness.ask(self._bus, self._pool, after, None if whole else _EVENTS_AT_ONCE)
        report.stream_events, report.stream_sequence, report.pending_events = said.events, said.sequence, said.pending
        differences = said.differences
        async with (
            self._pool.acquire(timeout=_STATEMENT_SECONDS) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            since = await oldest_hour(connection)
            if not whole:
                since = max(since, (now - _RECENT).replace(minute=0, second=0, microsecond=0))
            report.sums, found = await compare_sums(connection, since, now)
            differences += found
        async with self._pool.acquire() as connection:
            report.counters, found = await compare_counters(self._counters, connection)
            differences += found
        report.differences.extend(
            DifferenceMessage(**difference._asdict()) for difference in differences[:_DIFFERENCES]
        )
        report.duration.FromNanoseconds(int((time.monotonic() - began) * 1e9))
        await self._pool.execute(
            _ADD, now, said.sequence, len(differences), json_format.MessageToJson(report, indent=None)
        )
        await self._pool.execute(_FORGET, _KEPT_DAYS)
        return report


async def answer_requests(bus: Bus, reconciler: Reconciler) -> None:
    """One of all billing processes answers each request for a run."""
    await bus.nc.subscribe(names.SUBJECT_RECONCILE, queue="billing", cb=reconciler.answer)
