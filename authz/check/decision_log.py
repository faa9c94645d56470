"""Refusals, and what rules in shadow would have refused, for `uplion explain`: told to NATS, never waited for.

A few hundred a second at most: a client that is refused ten thousand times a second is explained by any of them.
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
from common.errors import Reason, UplionError
from messaging.bus import Bus
from messaging.decisions import Decision, encode

logger = logging.getLogger(__name__)
_MOST_WAITING = 400
_PER_SECOND = 200


class DecisionLog:
    """A short queue; `run` is its one task."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: deque[Decision] = deque()
        self._more = asyncio.Event()

    def refused(self, record: KeyRecord, request: RequestFacts, error: UplionError) -> None:
        """A request of a known key was refused."""
        decision = _decision(record, request, error.reason)
        self._queue(_by_rule(decision, error.violation) if isinstance(error, LimitError) else decision)

    def shadow(self, record: KeyRecord, request: RequestFacts, refusal: LimitError) -> None:
        """A rule in shadow would have refused the request, which was admitted."""
        self._queue(_by_rule(_decision(record, request, refusal.reason), refusal.violation, shadow=True))

    async def run(self) -> None:
        """Publishes for ever."""
        while True:
            await self._more.wait()
            self._more.clear()
            for _ in range(_PER_SECOND // 10):
                if not self._waiting:
                    break
                decision = self._waiting.popleft()
                try:
                    await self._bus.publish_core(names.decision_subject(decision.request_id), encode(decision))
                except (nats.errors.Error, ConnectionError) as problem:
                    AUTHZ_DECISIONS_DROPPED.inc()
                    logger.debug("a decision was not told", extra={"problem": repr(problem)})
            await asyncio.sleep(0.1)
            if self._waiting:
                self._more.set()

    def _queue(self, decision: Decision) -> None:
        if not decision.request_id or len(self._waiting) >= _MOST_WAITING:
            AUTHZ_DECISIONS_DROPPED.inc()
            return
        self._waiting.append(decision)
        self._more.set()


def _decision(record: KeyRecord, request: RequestFacts, reason: Reason) -> Decision:
    return Decision(
        request_id=request.request_id,
        time=datetime.now(UTC),
        reason=reason.name,
        account=record.account,
        project=record.project,
        key=record.id,
        model=request.model,
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
