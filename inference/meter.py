"""The meter: usage events out until acknowledged, and only then the ticket's own (double) acknowledgement.

One task and one inbox serve all of them: a settlement is a small state machine that moves on when an answer arrives.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import Header

from common import metrics, telemetry
from inference.replies import Replies, no_responders

logger = logging.getLogger(__name__)

ACK = b"+ACK"
_ANSWER_SECONDS = 2.0  # no answer within this long: sent again
_LONGEST_BACKOFF_SECONDS = 5.0
_ACK_TRIES = 3  # a ticket whose ack stays unanswered comes back, and is refused as done


@dataclass(slots=True, eq=False)
class Settlement:
    """What is left to do for a ticket: publish its event, if it has one, then acknowledge it."""

    ticket_reply: str  # the ticket message's own reply subject
    on_done: Callable[[], None]
    event_subject: str = ""
    event: bytes = b""  # empty: none to publish
    event_id: str = ""
    traceparent: str = ""
    published: bool = False
    tries: int = 0
    due_seconds: float = 0.0
    reply_subject: str = field(default="", repr=False)


class Meter:
    """Settles tickets. `run` is its one task; `put` may be called from anywhere on the loop, and never waits."""

    def __init__(self, client: Client, replies: Replies, on_progress: Callable[[], Awaitable[None]]) -> None:
        self._client = client
        self._replies = replies
        self._on_progress = on_progress  # called after each round: slots may be free again
        self._ready: deque[Settlement] = deque()
        self._pending: set[Settlement] = set()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def backlog(self) -> int:
        """Tickets not settled yet."""
        return len(self._ready) + len(self._pending)

    def put(self, settlement: Settlement) -> None:
        """Takes a ticket over."""
        if not settlement.event:
            settlement.published = True
        self._ready.append(settlement)
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Sends what is ready; ends only when cancelled."""
        while True:
            self._wake.clear()
            while self._ready:
                await self._send(self._ready.popleft())
            await self._on_progress()
            await self._wake.wait()

    def retry(self) -> None:
        """Whatever stayed unanswered for too long is sent again; to be called every now and then."""
        late = self._overdue(time.monotonic())
        if late:
            self._ready.extend(late)
            self._wake.set()

    async def flush(self, grace_seconds: float) -> None:
        """Waits until everything is settled; says so if that takes longer than it may."""
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            lost = sum(not settlement.published for settlement in (*self._pending, *self._ready))
            logger.error("usage events could not be delivered", extra={"events": lost, "unsettled": self.backlog})

    async def _send(self, settlement: Settlement) -> None:
        settlement.tries += 1
        backoff_seconds = min(_ANSWER_SECONDS * 2 ** (settlement.tries - 1), _LONGEST_BACKOFF_SECONDS)
        settlement.due_seconds = time.monotonic() + backoff_seconds
        self._pending.add(settlement)
        try:
            if settlement.published:
                settlement.reply_subject = self._replies.expect(partial(self._acknowledged, settlement))
                await self._client.publish(settlement.ticket_reply, ACK, settlement.reply_subject)
                return
            settlement.reply_subject = self._replies.expect(partial(self._stored, settlement))
            headers = {Header.MSG_ID.value: settlement.event_id}
            if settlement.traceparent:
                headers[telemetry.TRACEPARENT] = settlement.traceparent
            await self._client.publish(
                settlement.event_subject, settlement.event, settlement.reply_subject, headers=headers
            )
        except (nats.errors.Error, OSError) as problem:  # away, or its buffer is full: the next round tries again
            self._replies.forget(settlement.reply_subject)
            logger.warning("NATS took nothing", extra={"problem": repr(problem)})

    def _stored(self, settlement: Settlement, answer: Msg) -> None:
        """The stream's answer to an event."""
        if no_responders(answer) or b'"error"' in answer.data:
            logger.warning("usage event refused", extra={"answer": answer.data.decode(errors="replace")})
            metrics.USAGE_PUBLISH_RETRIES.inc()
            return  # stays pending: sent again when due
        settlement.published = True
        settlement.tries = 0
        self._pending.discard(settlement)
        self._ready.append(settlement)
        self._wake.set()

    def _acknowledged(self, settlement: Settlement, _: Msg) -> None:
        """The broker knows that the ticket is done."""
        self._finish(settlement)

    def _finish(self, settlement: Settlement) -> None:
        self._pending.discard(settlement)
        settlement.on_done()
        if not self._pending and not self._ready:
            self._idle.set()

    def _overdue(self, now_seconds: float) -> list[Settlement]:
        late = [settlement for settlement in self._pending if settlement.due_seconds <= now_seconds]
        for settlement in late:
            self._pending.discard(settlement)
            self._replies.forget(settlement.reply_subject)
            if settlement.published and settlement.tries >= _ACK_TRIES:
                self._finish(settlement)
            elif not settlement.published:
                metrics.USAGE_PUBLISH_RETRIES.inc()
        return [settlement for settlement in late if not (settlement.published and settlement.tries >= _ACK_TRIES)]
