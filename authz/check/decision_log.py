"""Publishes refusals, and those that rules in shadow would have made, for `uplion explain`. No check waits for it.

At most a few hundred a second are published: of ten thousand refusals a second to one client any sample explains it.
"""

import asyncio
import logging
from collections import deque
from datetime import UTC, datetime

import msgspec
import nats.errors

from authz.credentials.key_record import KeyRecord
from authz.limits.refusals import LimitError, Violation
from authz.metrics import AUTHZ_DECISIONS_DROPPED
from authz.request_facts import RequestFacts
from common import names
from common.boundary import Boundary
from common.errors import UplionError
from common.metrics import OBSERVATIONS_FAILED
from messaging.bus import Bus
from messaging.decisions import Decision, encode

logger = logging.getLogger(__name__)
_observing = Boundary("a decision was not recorded", logger, OBSERVATIONS_FAILED.labels("decision"))
_MAX_QUEUED = 400
_PER_SECOND = 200


class DecisionLog:
    """A bounded queue; `run` is its one task."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._queued: deque[Decision] = deque()
        self._more = asyncio.Event()

    def refused(self, record: KeyRecord, request: RequestFacts, error: UplionError) -> None:
        """A request of a known key was refused."""
        with _observing:
            decision = _decision(record, request, error)
            self._queue(_by_rule(decision, error.violation) if isinstance(error, LimitError) else decision)

    def shadow(self, record: KeyRecord, request: RequestFacts, refusal: LimitError) -> None:
        """A rule in shadow would have refused the request, which was admitted."""
        with _observing:
            self._queue(_by_rule(_decision(record, request, refusal), refusal.violation, shadow=True))

    async def run(self) -> None:
        """Publishes until cancelled."""
        while True:
            await self._more.wait()
            self._more.clear()
            for _ in range(_PER_SECOND // 10):
                if not self._queued:
                    break
                decision = self._queued.popleft()
                with _observing:
                    await self._publish(decision)
            await asyncio.sleep(0.1)
            if self._queued:
                self._more.set()

    async def _publish(self, decision: Decision) -> None:
        try:
            await self._bus.publish_core(names.decision_subject(decision.request_id), encode(decision))
        except (nats.errors.Error, ConnectionError) as problem:
            AUTHZ_DECISIONS_DROPPED.inc()
            logger.debug("a decision was not published", extra={"problem": repr(problem)})

    def _queue(self, decision: Decision) -> None:
        if not decision.request_id or len(self._queued) >= _MAX_QUEUED:
            AUTHZ_DECISIONS_DROPPED.inc()
            return
        self._queued.append(decision)
        self._more.set()


def _decision(record: KeyRecord, request: RequestFacts, error: UplionError) -> Decision:
    return Decision(
        request_id=request.request_id,
        time=datetime.now(UTC),
        reason=error.reason.name,
        account=record.account,
        project=record.project,
        key=record.id,
        model=request.model,
        retry_after_seconds=error.retry_after_seconds,
    )


def _by_rule(decision: Decision, violation: Violation, *, shadow: bool = False) -> Decision:
    rule = violation.rule
    return msgspec.structs.replace(
        decision,
        rule=rule.name,
        level=rule.level,
        measure=rule.limit.measure,
        period=rule.limit.period,
        limit=rule.limit.amount,
        balance=violation.balance,
        clears_at=None if violation.clears_at is None else datetime.fromtimestamp(violation.clears_at, UTC),
        shadow=shadow,
    )
