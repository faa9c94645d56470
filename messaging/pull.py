"""Pulling from a durable consumer with a standing credit, and answering for many messages at once."""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import nats.errors
from nats.aio.msg import Msg

from messaging.connection import Connection

if TYPE_CHECKING:
    from messaging.bus import Bus

logger = logging.getLogger(__name__)


class Message:
    """A message of a stream, as it came; what is seldom needed is read when it is asked for."""

    __slots__ = ("_connection", "_header", "_reply", "_subject", "data")

    def __init__(self, connection: Connection, subject: bytes, reply: bytes, header: bytes, data: bytes) -> None:
        self._connection = connection
        self._subject = subject
        self._reply = reply
        self._header = header
        self.data = data

    @property
    def subject(self) -> str:
        return self._subject.decode("utf-8", "replace")

    @property
    def reply(self) -> str:
        """Where its answers (ack and friends) go."""
        return self._reply.decode()

    @property
    def headers(self) -> dict[str, str]:
        """The last value of each."""
        lines = self._header.decode("utf-8", "replace").split("\r\n")[1:]
        return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}

    def header(self, name: bytes) -> bytes:
        """The value of one header, empty where it is missing: a tenth of the time that all of them take."""
        return self._header.partition(b"\r\n" + name + b":")[2].partition(b"\r\n")[0].strip()

    @property
    def stream_time_ns(self) -> int:
        """When the stream took it, by the server's clock: unix ns, the same at each delivery."""
        words = self._reply.split(b".")
        return int(words[7 if len(words) == 9 else 9])

    @property
    def no_responders(self) -> bool:
        """Whether it is the server's status 503: the subject that was published to has no subscriber."""
        return not self.data and self._header[9:12] == b"503"

    @property
    def metadata(self) -> Msg.Metadata:
        """Its numbers in stream and consumer, and how often it was delivered."""
        return Msg.Metadata._from_reply(self.reply)

    @property
    def delivery_count(self) -> int:
        """How often it has been delivered; 1 is the first time."""
        words = self._reply.split(b".")  # $JS.ACK[.<domain>.<account>].<stream>.<consumer>.<delivered>. ...
        return int(words[4 if len(words) == 9 else 6])

    async def ack_sync(self, timeout: float = 1.0) -> None:
        """Acknowledges, and waits until the server confirms it. Raises nats.errors.Error."""
        await self._connection.request(self.reply, seconds=timeout)


class Pull:
    """Messages of a durable consumer over one inbox subscription with a standing credit.

    `want(n)` sets how many may be on their way or waiting here; it is renewed at half, so that a message costs 3 us and
    no round trip (`fetch(1)` costs 180). Take them in one task.
    """

    _EXPIRES_SECONDS = 30.0

    def __init__(self, bus: "Bus", stream: str, consumer: str) -> None:
        self._bus = bus
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._waiting: deque[Message] = deque()
        self._news = asyncio.Event()
        self._inbox = bus.new_inbox()
        self._wanted = 0
        self._outstanding = 0
        self._reconnects = bus.reconnects
        self._asked_at = 0.0
        self._until_left = AsyncExitStack()

    async def __aenter__(self) -> "Pull":
        self._subscription = await self._until_left.enter_async_context(
            self._bus.diverted(self._inbox, self._on_message)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._until_left.aclose()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        while True:
            message = await self.next(1.0)
            if message is not None:
                return message

    async def next(self, timeout: float) -> Message | None:
        """The next message, or None when none came within `timeout` seconds."""
        return next(iter(await self.take(1, timeout)), None)

    async def take(self, most: int, timeout: float) -> list[Message]:
        """All that wait here, up to `most`; waits for a first one, and is empty when none comes within `timeout`."""
        await self._renew()
        try:
            async with asyncio.timeout(timeout):
                while not self._waiting:
                    self._news.clear()
                    await self._news.wait()
                    await self._renew()
        except TimeoutError:
            return []
        return self.take_waiting(most)

    def take_waiting(self, most: int) -> list[Message]:
        """What is here at this moment, up to `most`."""
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    @property
    def waiting(self) -> list[Message]:
        """Messages that have arrived and were not taken."""
        return list(self._waiting)

    @property
    def outstanding(self) -> int:
        """Messages asked for that may still arrive, waiting ones included."""
        return self._outstanding + len(self._waiting)

    async def want(self, count: int) -> None:
        """Lets `count` messages come, those already asked for included; 0 asks for no more."""
        self._wanted = max(0, count)
        await self._renew()

    async def finish(self) -> list[Message]:
        """Ends the pull; returns what had arrived and was not taken, to be given back."""
        self._wanted = 0
        with suppress(nats.errors.Error, TimeoutError):
            await self._subscription.drain()  # type: ignore[no-untyped-call]
        left = list(self._waiting)
        self._waiting.clear()
        return left

    async def acknowledge(self, messages: Sequence[Message], timeout: float) -> None:
        """Double ack of all: the server reads a connection's acks in order, so its answer to the last covers them all.

        (5,000 separate ack_sync cost 300 ms.) Raises nats.errors.Error or TimeoutError: some may come again.
        """
        await self._reply(messages[:-1], b"")
        await messages[-1].ack_sync(timeout)

    async def give_back(self, messages: Sequence[Message]) -> None:
        """Lets another process have them at once, instead of after the ack wait. Raises nats.errors.Error."""
        await self._reply(messages, b"-NAK")

    async def keep(self, messages: Sequence[Message]) -> None:
        """Reports them as in progress: their ack wait begins anew. Raises nats.errors.Error."""
        await self._reply(messages, b"+WPI")

    async def _reply(self, messages: Sequence[Message], word: bytes) -> None:
        if self._bus.closed:
            raise nats.errors.ConnectionClosedError
        if not messages:
            return
        tail = b" %d\r\n%b\r\n" % (len(word), word)
        await self._bus.write(b"".join([b"PUB " + message._reply + tail for message in messages]))

    async def _renew(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._reconnects != self._bus.reconnects or now - self._asked_at > self._EXPIRES_SECONDS + 2.0:
            self._reconnects = self._bus.reconnects
            self._outstanding = 0  # a pull request ends with its connection, or with its time
        missing = self._wanted - self.outstanding
        if missing <= 0 or self.outstanding > self._wanted // 2 or not self._bus.connected:
            return
        self._outstanding += missing
        self._asked_at = now
        request = {"batch": missing, "expires": int(self._EXPIRES_SECONDS * 1e9)}
        try:
            await self._bus.publish_core(self._subject, json.dumps(request).encode(), reply=self._inbox)
        except nats.errors.Error:
            self._outstanding = 0

    def _on_message(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        if reply:
            if not reply.startswith(b"$JS.ACK."):  # no consumer's: nobody could be answered
                logger.warning("a message came to a consumer's inbox from elsewhere")
                return
            self._outstanding = max(0, self._outstanding - 1)
            self._waiting.append(Message(self._bus, subject, reply, header, payload))
            self._news.set()
        else:
            self._on_status(header)

    def _on_status(self, header: bytes) -> None:
        """The server's status of a pull request: `NATS/1.0 <status> <description>`, then headers."""
        status = header[9:12]
        if status == b"408":  # a request's time is over; the rest of its credit is gone
            pending = header.partition(b"Nats-Pending-Messages:")[2].partition(b"\r\n")[0].strip()
            self._outstanding = max(0, self._outstanding - int(pending)) if pending else 0
            self._news.set()  # ask for more
        elif status != b"100":  # 404, 409, 503: the consumer moved or is not there; `take` asks again
            self._outstanding = 0
            self._asked_at = 0.0
