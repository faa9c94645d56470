"""Tickets from the durable JetStream pull consumer that the workers of one model and lane share."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import nats.errors

from common import names, telemetry
from inference.tickets.source import SourceUnavailableError
from messaging.bus import Bus
from messaging.connection import Send
from messaging.dead_letters import DeadLetter, dead_letter
from messaging.inbox import Inbox
from messaging.pull import Message, Pull

logger = logging.getLogger(__name__)

_ACK = b"+ACK"
_NAK = b"-NAK"
_TERM = b"+TERM"
_IN_PROGRESS = b"+WPI"
_CONFIRM_SECONDS = 2.0  # an acknowledgement that is not confirmed within this time is sent again
_ACK_TRIES = 3


@dataclass(slots=True, eq=False)
class _Acknowledgement:
    """An acknowledgement that the server has not confirmed."""

    subject: str  # the message's own reply subject
    on_end: Callable[[], None]
    tries: int
    due_seconds: float  # the loop's time


class JetStreamSource:
    """A TicketSource. Made by `open`; acknowledgements are still repeated and confirmed after `finish`."""

    def __init__(self, send: Send, inbox: Inbox, pull: Pull) -> None:
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._inbox = inbox
        self._pull = pull
        self._unconfirmed: dict[str, _Acknowledgement] = {}  # by inbox subject, oldest first
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, bus: Bus, inbox: Inbox, model: str, lane: str) -> AsyncIterator["JetStreamSource"]:
        """Creates the consumer if it does not exist; raises what NATS raises."""
        consumer = await bus.ensure_task_consumer(model, lane)
        async with Pull(bus, names.STREAM_TASKS, consumer) as pull:
            source = cls(bus.send, inbox, pull)
            try:
                yield source
            finally:
                if source._timer is not None:
                    source._timer.cancel()

    async def want(self, count: int) -> None:
        await self._pull.want(count)

    async def next(self, timeout_seconds: float) -> "JetStreamDelivery | None":
        message = await self._pull.next(timeout_seconds)
        return None if message is None else JetStreamDelivery(self, message)

    async def finish(self) -> "list[JetStreamDelivery]":
        return [JetStreamDelivery(self, message) for message in await self._pull.finish()]

    def publish(self, subject: str, payload: bytes) -> None:
        """Sends with whatever is sent next, within 2 ms. Raises SourceUnavailableError."""
        try:
            self._send(subject, payload, now=False)
        except (nats.errors.Error, OSError) as problem:
            raise SourceUnavailableError(repr(problem)) from problem

    def bury(self, message: Message, letter: DeadLetter) -> None:
        """Publishes the letter; once DEAD holds it, the message leaves its queue. Raises SourceUnavailableError."""

        def on_answer(answer: Message) -> None:
            if answer.no_responders or b'"error"' in answer.data:
                logger.error("DEAD does not take a ticket, which will come again")
            else:
                self.publish(message.reply, _TERM)

        try:
            self._send(letter.subject, letter.payload, self._inbox.expect(on_answer), letter.headers)
        except (nats.errors.Error, OSError) as problem:
            raise SourceUnavailableError(repr(problem)) from problem

    def acknowledge(self, subject: str, on_end: Callable[[], None], tries: int = 1) -> None:
        """Sends an acknowledgement that asks for confirmation: an acknowledgement alone may be lost."""
        reply = self._inbox.expect(partial(self._confirmed, on_end))
        due_seconds = self._loop.time() + _CONFIRM_SECONDS
        self._unconfirmed[reply] = _Acknowledgement(subject, on_end, tries, due_seconds)
        if self._timer is None:
            self._timer = self._loop.call_at(due_seconds, self._repeat)
        try:
            self._send(subject, _ACK, reply, now=False)
        except (nats.errors.Error, OSError) as problem:  # disconnected, or the buffer is full: repeated later
            logger.warning("acknowledgement not sent", extra={"problem": repr(problem)})

    def _confirmed(self, on_end: Callable[[], None], answer: Message) -> None:
        self._unconfirmed.pop(answer.subject, None)
        on_end()

    def _repeat(self) -> None:
        """Sends again what was not confirmed in time, and gives up after the last try."""
        self._timer = None
        now_seconds = self._loop.time()
        for reply, acknowledgement in list(self._unconfirmed.items()):
            if acknowledgement.due_seconds > now_seconds:
                break
            del self._unconfirmed[reply]
            self._inbox.forget(reply)
            if acknowledgement.tries < _ACK_TRIES:
                self.acknowledge(acknowledgement.subject, acknowledgement.on_end, acknowledgement.tries + 1)
            else:
                acknowledgement.on_end()
        if self._timer is None and self._unconfirmed:
            self._timer = self._loop.call_at(next(iter(self._unconfirmed.values())).due_seconds, self._repeat)


class JetStreamDelivery:
    """A Delivery: one message of the consumer."""

    __slots__ = ("_message", "_source")

    def __init__(self, source: JetStreamSource, message: Message) -> None:
        self._source = source
        self._message = message

    @property
    def payload(self) -> bytes:
        return self._message.data

    @property
    def traceparent(self) -> str:
        return telemetry.incoming(self._message.headers)

    @property
    def delivery_count(self) -> int:
        return self._message.delivery_count

    async def in_progress(self) -> None:
        self._source.publish(self._message.reply, _IN_PROGRESS)

    def acknowledge(self, on_end: Callable[[], None]) -> None:
        self._source.acknowledge(self._message.reply, on_end)

    async def give_back(self, delay_seconds: float = 0.0) -> None:
        word = b'%b {"delay": %d}' % (_NAK, delay_seconds * 1e9) if delay_seconds else _NAK
        self._source.publish(self._message.reply, word)

    async def dead_letter(self, problem: str) -> None:
        self._source.bury(self._message, dead_letter(names.STREAM_TASKS, self._message, problem))
