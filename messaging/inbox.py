"""One inbox for all replies that no task waits for: refusals of offers, publish acknowledgements, double acks.

A request of nats-py costs a future, a timer and a task switch; here an answer is one dictionary look-up.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Self

from messaging.connection import Connection
from messaging.pull import Message

OnReply = Callable[[Message], None]


class Inbox:
    """Hands out reply subjects and calls back with what arrives on them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._prefix = connection.new_inbox()
        self._numbers = count(1)
        self._waiting: dict[bytes, OnReply] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, connection: Connection) -> AsyncIterator[Self]:
        """Subscribed while the block runs."""
        inbox = cls(connection)
        async with connection.diverted(f"{inbox._prefix}.*", inbox._arrived):
            yield inbox

    def expect(self, on_reply: OnReply) -> str:
        """A fresh reply subject; `on_reply` is called at most once, with the first message on it. It must be quick."""
        number = str(next(self._numbers))
        self._waiting[number.encode()] = on_reply
        return f"{self._prefix}.{number}"

    def forget(self, subject: str) -> None:
        """Drops what was expected on the subject."""
        self._waiting.pop(subject.rpartition(".")[2].encode(), None)

    def _arrived(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        on_reply = self._waiting.pop(subject.rpartition(b".")[2], None)
        if on_reply is not None:
            on_reply(Message(self._connection, subject, reply, header, payload))
