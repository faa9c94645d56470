"""The meter: a ticket's usage event into the outbox; once it is safe there, the ticket's (double) acknowledgement."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import nats.errors
from nats.aio.client import Client
from uplion.billing.v1.usage_event_pb2 import UsageEvent

from messaging import nats_protocol
from messaging.inbox import Inbox
from messaging.outbox import Outbox
from messaging.pull import Message

logger = logging.getLogger(__name__)

ACK = b"+ACK"
_ANSWER_SECONDS = 2.0  # no answer within this long: sent again
_ACK_TRIES = 3  # a ticket whose ack stays unanswered comes back, and is refused as done


@dataclass(slots=True, eq=False)
class Settlement:
    """What is left to do for a ticket: its event, if it has one, then its acknowledgement."""

    ticket_reply: str  # the ticket message's own reply subject
    on_done: Callable[[], None]
    event: UsageEvent | None = None
    traceparent: str = ""
    tries: int = 0
    due_seconds: float = 0.0
    reply_subject: str = field(default="", repr=False)


class Settler:
    """Settles tickets. `run` is its one task; `put` may be called from anywhere on the loop, and never waits."""

    def __init__(
        self, client: Client, inbox: Inbox, outbox: Outbox, on_progress: Callable[[], Awaitable[None]]
    ) -> None:
        self._client = client
        self._inbox = inbox
        self._outbox = outbox
        self._on_progress = on_progress  # called after each round: slots may be free again
        self._unsettled = 0
        self._safe: deque[Settlement] = deque()  # whose event is
        self._acknowledging: set[Settlement] = set()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, settlement: Settlement) -> None:
        """Takes a ticket over."""
        self._unsettled += 1
        self._idle.clear()
        if settlement.event is None:
            self._is_safe(settlement)
        else:
            self._outbox.put(settlement.event, partial(self._is_safe, settlement), traceparent=settlement.traceparent)

    def _is_safe(self, settlement: Settlement) -> None:
        self._safe.append(settlement)
        self._wake.set()

    async def run(self) -> None:
        """Acknowledges what may be; ends only when cancelled."""
        while True:
            self._wake.clear()
            while self._safe:
                self._acknowledge(self._safe.popleft())
            await self._on_progress()
            await self._wake.wait()

    def retry(self) -> None:
        """Whatever stayed unanswered for too long is sent again; to be called every now and then."""
        now_seconds = time.monotonic()
        for settlement in [late for late in self._acknowledging if late.due_seconds <= now_seconds]:
            self._acknowledging.discard(settlement)
            self._inbox.forget(settlement.reply_subject)
            if settlement.tries < _ACK_TRIES:
                self._is_safe(settlement)
            else:
                self._finish(settlement)

    async def flush(self, grace_seconds: float) -> None:
        """Waits until everything is settled; says so if that takes longer than it may."""
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("tickets could not be settled", extra={"unsettled": self._unsettled})

    def _acknowledge(self, settlement: Settlement) -> None:
        settlement.tries += 1
        settlement.due_seconds = time.monotonic() + _ANSWER_SECONDS
        self._acknowledging.add(settlement)
        settlement.reply_subject = self._inbox.expect(partial(self._acknowledged, settlement))
        try:
            nats_protocol.send(self._client, settlement.ticket_reply, ACK, settlement.reply_subject, now=False)
        except (nats.errors.Error, OSError) as problem:  # away, or its buffer is full: the next round tries again
            logger.warning("NATS took nothing", extra={"problem": repr(problem)})

    def _acknowledged(self, settlement: Settlement, _: Message) -> None:
        """The broker knows that the ticket is done."""
        self._acknowledging.discard(settlement)
        self._finish(settlement)

    def _finish(self, settlement: Settlement) -> None:
        settlement.on_done()
        self._unsettled -= 1
        if not self._unsettled:
            self._idle.set()
