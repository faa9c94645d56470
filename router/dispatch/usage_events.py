"""What the router tells the meter: of attempts that no worker can account for, and again of those whose worker died
before its own event was safe. Telling twice is harmless: the event's id is its attempt's.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from uplion.billing.v1.usage_event_pb2 import UsageEvent

from common import telemetry
from messaging.bus import TASK_ACK_WAIT_SECONDS, WORKER_TTL_SECONDS
from messaging.outbox import Outbox

logger = logging.getLogger(__name__)

REMEMBERED_SECONDS = 3 * TASK_ACK_WAIT_SECONDS  # a dead worker's ticket comes back after one ack wait
# What a worker has not made safe within this long, it has on disk. Its entry in KV outlives it by the TTL.
_UNSAFE_SECONDS = 5.0
_GONE_SECONDS = _UNSAFE_SECONDS + WORKER_TTL_SECONDS
_GONE_REMEMBERED = 1000


class _Ended(NamedTuple):
    """An attempt whose event its worker owes."""

    at: float
    worker_id: str
    event: Callable[[], UsageEvent]


class Usage:
    """Reports, and remembers for a while what others have to report."""

    def __init__(self, outbox: Outbox, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._outbox = outbox
        self._capacity = capacity
        self._clock = clock
        self._ended: OrderedDict[str, _Ended] = OrderedDict()  # by the attempt's id, oldest first
        self._gone: OrderedDict[str, float] = OrderedDict()  # workers, and when that was noticed

    @property
    def blocked(self) -> bool:
        """What is begun now could perhaps not be billed."""
        return self._outbox.blocked

    def report(self, event: UsageEvent) -> None:
        """Takes an event; returns at once."""
        self._outbox.put(event, traceparent=telemetry.traceparent.get())

    def remember(self, attempt_id: str, worker_id: str, event: Callable[[], UsageEvent]) -> None:
        """An attempt has ended, and its worker owes the event; `event` makes one as far as the router knows."""
        now = self._clock()
        if now - self._gone.get(worker_id, -_UNSAFE_SECONDS) < _UNSAFE_SECONDS:
            self.report(event())
            return
        ended = self._ended
        ended[attempt_id] = _Ended(now, worker_id, event)
        while len(ended) > self._capacity or next(iter(ended.values())).at < now - REMEMBERED_SECONDS:
            ended.popitem(last=False)

    def tell_again(self, attempt_id: str) -> None:
        """The ticket of an attempt has come back, so its worker did not settle it."""
        ended = self._ended.pop(attempt_id, None)
        if ended is not None:
            logger.warning("usage told for a lost worker", extra={"worker_id": ended.worker_id, "attempts": 1})
            self.report(ended.event())

    def worker_broke(self, worker_id: str) -> None:
        """A worker broke off in the middle of a run: what it had just ended may never have reached the stream."""
        self._tell_for(worker_id, _UNSAFE_SECONDS)

    def worker_lives(self, worker_id: str) -> None:
        """It offers itself: it will tell itself what it owes."""
        self._gone.pop(worker_id, None)

    def worker_gone(self, worker_id: str) -> None:
        """A worker has not said for a while that it is there."""
        self._tell_for(worker_id, _GONE_SECONDS)

    def _tell_for(self, worker_id: str, seconds: float) -> None:
        now = self._clock()
        if seconds == _UNSAFE_SECONDS and now - self._gone.get(worker_id, -1.0) < 1.0:
            return  # each of its runs says so
        self._gone[worker_id] = now
        if len(self._gone) > _GONE_REMEMBERED:
            self._gone.popitem(last=False)
        found: list[str] = []
        for attempt_id, ended in reversed(self._ended.items()):
            if ended.at < now - seconds:
                break
            if ended.worker_id == worker_id:
                found.append(attempt_id)
        if found:
            logger.warning("usage told for a lost worker", extra={"worker_id": worker_id, "attempts": len(found)})
        for attempt_id in reversed(found):
            self.report(self._ended.pop(attempt_id).event())
