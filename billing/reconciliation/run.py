"""A reconciliation run: compares stream, ledger, rollups, balances, spending and Valkey, periodically and on request.

Work in progress is no difference: the stream is read up to billing's acknowledgement floor, the ledger's sums in one
snapshot, and a counter, which is raised after the commit, may lag for some seconds.
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

from billing import metrics
from billing.reconciliation.counters import CounterReader, compare_counters
from billing.reconciliation.stream import audit_stream
from billing.reconciliation.sums import compare_sums, oldest_hour
from common import names
from messaging.bus import Bus

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

logger = logging.getLogger(__name__)

CHECKS = ("lost", "double", "dead", "hourly", "balances", "spending", "counters", "reservations")
_RECENT = timedelta(days=2)
_EVENTS_AT_ONCE = 200_000  # in a scheduled run; the next run continues
_DIFFERENCES_PER_CHECK = 125  # in the report, which has a thousand at most
_KEPT_DAYS = 90
_STATEMENT_SECONDS = 300.0

_LAST_SEQUENCE = "SELECT stream_sequence FROM reconciliations ORDER BY id DESC LIMIT 1"
_ADD = "INSERT INTO reconciliations (run_time, stream_sequence, differences, report) VALUES ($1, $2, $3, $4)"
_FORGET = "DELETE FROM reconciliations WHERE run_time < now() - make_interval(days => $1)"


class Reconciler:
    """Runs reconciliations, one at a time, and stores their reports."""

    def __init__(self, bus: Bus, pool: "Pool", counters: CounterReader) -> None:
        self._bus = bus
        self._pool = pool
        self._counters = counters
        self._running = asyncio.Lock()  # a second run at the same time would add only load

    async def scheduled(self) -> None:
        """Compares the last two days, and the stream since the last run."""
        await self.run(whole=False)

    async def answer(self, message: Msg) -> None:
        """Serves a request for a run over everything; the reply is empty when the run failed."""
        try:
            report = await self.run(whole=True)
        except Exception:  # a message-consumer boundary: the requester gets an empty reply
            logger.exception("reconciliation failed")
            answer = b""
        else:
            answer = report.SerializeToString()
        if message.reply:  # who asks without an address for the answer wants the run alone
            await message.respond(answer)

    async def run(self, *, whole: bool) -> Reconciliation:
        """Makes one run. Raises the errors of NATS, Postgres and Valkey."""
        async with self._running:
            report, found = await self._run(whole=whole)
        for check in CHECKS:
            metrics.BILLING_DIFFERENCES.labels(check).set(found[check])
        metrics.BILLING_RECONCILED.set_to_current_time()
        level = logging.ERROR if found else logging.INFO
        logger.log(level, "reconciled", extra={"differences": dict(found), "stream_events": report.stream_events})
        return report

    async def _run(self, *, whole: bool) -> tuple[Reconciliation, Counter[str]]:
        """The report, and how many differences each check found: the report may hold fewer."""
        report = Reconciliation(whole=whole)
        report.run_time.GetCurrentTime()
        began, now = time.monotonic(), datetime.now(UTC)
        after = 0 if whole else await self._pool.fetchval(_LAST_SEQUENCE) or 0
        audit = await audit_stream(self._bus, self._pool, after, None if whole else _EVENTS_AT_ONCE)
        report.stream_events, report.stream_sequence, report.pending_events = (
            audit.events,
            audit.sequence,
            audit.pending,
        )
        differences = audit.differences
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
        counts: Counter[str] = Counter()
        for difference in differences:
            counts[difference.check] += 1
            if counts[difference.check] <= _DIFFERENCES_PER_CHECK:
                report.differences.append(DifferenceMessage(**difference._asdict()))
        report.duration.FromNanoseconds(int((time.monotonic() - began) * 1e9))
        await self._pool.execute(
            _ADD, now, audit.sequence, len(differences), json_format.MessageToJson(report, indent=None)
        )
        await self._pool.execute(_FORGET, _KEPT_DAYS)
        return report, counts


async def answer_requests(bus: Bus, reconciler: Reconciler) -> None:
    """Subscribes as a queue group, so that one of all billing processes serves each request for a run."""
    await bus.subscribe(names.SUBJECT_RECONCILE, queue="billing", cb=reconciler.answer)
