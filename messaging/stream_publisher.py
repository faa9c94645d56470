"""Publishes usage events to JetStream, and keeps what its answers say about the stream."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import nats.errors
from nats.js.api import Header

from common import names, telemetry
from messaging import metrics
from messaging.connection import Connection
from messaging.inbox import Inbox
from messaging.pull import Message

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 1.5
_PATIENCE_SECONDS = 3.0  # with a stream that acknowledges nothing, before nothing new should be begun
_BAD_REQUEST = 400

OnAnswer = Callable[[bool], None]  # whether the stream has acknowledged the event


class Parcel(msgspec.Struct, frozen=True, array_like=True):
    """One event as it is published, and as it is stored in the spool."""

    subject: str
    id: str
    traceparent: str
    event: bytes


class _Pending(NamedTuple):
    """What is published and not yet answered."""

    due: float  # the loop's time
    on_answer: OnAnswer


class StreamPublisher:
    """`trusted` is False from the first event that the stream did not acknowledge until it acknowledges one again."""

    def __init__(self, connection: Connection, inbox: Inbox, on_change: Callable[[], None]) -> None:
        """`on_change` is called after each answer of the stream."""
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._inbox = inbox
        self._on_change = on_change
        self._pending: dict[str, _Pending] = {}  # by reply subject, oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._distrusted_at = 0.0
        self._refused = False
        self.trusted = True
        self.trust_lost = asyncio.Event()  # whoever waits for it clears it

    @property
    def connected(self) -> bool:
        """Whether there is a connection to NATS."""
        return self._connection.connected

    @property
    def blocked(self) -> bool:
        """Whether the stream refuses events, or has not acknowledged one for a while."""
        # A stream on a full disk does not refuse: it answers nothing, while tickets in memory go on being taken.
        silent = not self.trusted and self._loop.time() - self._distrusted_at > _PATIENCE_SECONDS
        return self._refused or silent

    def publish(self, parcel: Parcel, on_answer: OnAnswer) -> None:
        """`on_answer` is called once: at the answer, when none came in time, or at once without a connection."""
        subject = self._inbox.expect(self._on_message)
        due = self._loop.time() + _ANSWER_SECONDS
        self._pending[subject] = _Pending(due, on_answer)
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._expire)
        headers = {Header.MSG_ID.value: parcel.id, names.HEADER_SENT: str(time.time_ns())}
        if parcel.traceparent:
            headers[telemetry.TRACEPARENT] = parcel.traceparent
        try:
            if not self._connection.connected:  # nats-py would keep it, and send it when no one waits any more
                raise nats.errors.ConnectionClosedError
            self._connection.send(parcel.subject, parcel.event, subject, headers, now=False)
        except (nats.errors.MaxPayloadError, nats.errors.BadSubjectError) as problem:
            metrics.USAGE_LOST.inc()
            logger.error("usage event lost: no message can hold it", extra={"problem": repr(problem)})
            self._end(subject, acknowledged=True)
        except (nats.errors.Error, OSError):
            self._end(subject, acknowledged=False)

    def distrust(self) -> None:
        """An event was not acknowledged."""
        if self.trusted:
            self.trusted = False
            self._distrusted_at = self._loop.time()
            self.trust_lost.set()

    def trust(self) -> None:
        """Nothing waits for the stream any more, and the next event is to find out about it."""
        self.trusted, self._refused = True, False

    def close(self) -> None:
        """What is not acknowledged yet counts as not acknowledged."""
        if self._timer is not None:
            self._timer.cancel()
        for subject in list(self._pending):
            self._end(subject, acknowledged=False)

    def _on_message(self, message: Message) -> None:
        refused = message.no_responders or b'"error"' in message.data
        if refused and _is_permanent(message.data):
            metrics.USAGE_LOST.inc()
            logger.error("usage event lost: the stream can never take it", extra={"answer": _text(message)})
            refused = False
        if refused:
            if not self._refused:
                logger.error("the stream refuses usage events", extra={"answer": _text(message)})
            self.distrust()
        else:
            self.trusted = True
        self._refused = refused
        self._end(message.subject, acknowledged=not refused)
        self._on_change()

    def _expire(self) -> None:
        """The timer: what has waited too long for its answer is not acknowledged."""
        now = self._loop.time()
        self._timer = None
        for subject, pending in list(self._pending.items()):
            if pending.due > now:
                self._timer = self._loop.call_at(pending.due, self._expire)
                return
            self._end(subject, acknowledged=False)

    def _end(self, subject: str, *, acknowledged: bool) -> None:
        pending = self._pending.pop(subject, None)
        self._inbox.forget(subject)
        if pending is not None:
            pending.on_answer(acknowledged)


def _text(message: Message) -> str:
    return message.data[:300].decode(errors="replace")


def _is_permanent(answer: bytes) -> bool:
    """Whether the event itself is refused, rather than the server unable (503: no room, no leader)."""
    try:
        return bool(answer) and json.loads(answer)["error"]["code"] == _BAD_REQUEST
    except (ValueError, KeyError, TypeError):
        return False
