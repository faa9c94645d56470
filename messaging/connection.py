"""A connection to NATS: publishing, asking and subscribing without JetStream."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Protocol

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from common.boundary import Boundary
from common.metrics import MESSAGES_DROPPED
from messaging import nats_protocol
from messaging.nats_protocol import Sink, Wire

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 5.0


class Send(Protocol):
    """Publishes at once, without waiting; see `nats_protocol.send`. Raises nats.errors.Error or OSError."""

    def __call__(
        self,
        subject: str,
        payload: bytes,
        reply: str = "",
        headers: Mapping[str, str] | None = None,
        *,
        now: bool = True,
    ) -> None: ...


class Connection:
    """What NATS itself offers; nats-py's client stays behind it. Every method raises nats.errors.Error."""

    def __init__(self, client: Client, wire: Wire) -> None:
        self._client = client
        self._wire = wire
        self.reconnects = 0  # what depended on the old connection compares this with what it saw
        self.send: Send = partial(nats_protocol.send, client)  # no method: it is called for every request
        self.push = wire.push  # what was sent is in the hands of the system, should this process die

    @property
    def connected(self) -> bool:
        """Whether a server is connected now; a lost one is looked for until the connection is closed."""
        return self._client.is_connected

    @property
    def closed(self) -> bool:
        """Whether it was closed for good."""
        return self._client.is_closed

    async def publish_core(
        self, subject: str, payload: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publishes without JetStream. Waits where the buffer is full; while disconnected the message is kept in it."""
        nats_protocol.check_subject(subject)
        await self._client.publish(subject, payload, reply, headers)

    async def request(self, subject: str, payload: bytes = b"", *, seconds: float) -> bytes:
        """The first answer's payload. Raises NoRespondersError where no one subscribes, or TimeoutError."""
        return (await self._client.request(subject, payload, timeout=seconds)).data

    async def subscribe(
        self, subject: str, *, queue: str = "", cb: Callable[[Msg], Awaitable[None]] | None = None
    ) -> Subscription:
        """Subscribes; the server knows of it when it returns. Of one `queue` each message goes to one subscriber."""
        subscription = await self._client.subscribe(subject, queue=queue, cb=cb)
        await self.flush()
        return subscription

    @asynccontextmanager
    async def subscribed(
        self, subject: str, *, queue: str = "", cb: Callable[[Msg], Awaitable[None]] | None = None
    ) -> AsyncIterator[Subscription]:
        """The same while the block runs. A message that `cb` cannot digest is dropped, logged and counted."""
        subscription = await self.subscribe(subject, queue=queue, cb=None if cb is None else _bounded(subject, cb))
        try:
            yield subscription
        finally:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    @asynccontextmanager
    async def diverted(self, subject: str, sink: Sink) -> AsyncIterator[Subscription]:
        """While the block runs, `sink` is called with each message of the subject, unparsed; it must be quick."""
        subscription = await self._client.subscribe(subject)
        self._wire.divert(subscription, sink)
        try:
            yield subscription
        finally:
            self._wire.restore(subscription)
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def flush(self, seconds: float = _FLUSH_SECONDS) -> None:
        """Returns when the server has everything that was published before. Raises nats.errors.TimeoutError."""
        await self._client.flush(timeout=seconds)  # type: ignore[arg-type]

    def new_inbox(self) -> str:
        """A subject that no other subscriber uses."""
        return self._client.new_inbox()

    async def write(self, commands: bytes) -> None:
        """Sends finished protocol lines in one piece; while disconnected they wait as those of `publish_core` do."""
        await nats_protocol.write(self._client, commands)


def _bounded(subject: str, cb: Callable[[Msg], Awaitable[None]]) -> Callable[[Msg], Awaitable[None]]:
    boundary = poison(subject)

    async def handle(message: Msg) -> None:
        with boundary:
            await cb(message)

    return handle


def poison(source: str) -> Boundary:
    """For a consumer that handles each message of a subject or bucket inside: one it cannot digest is dropped."""
    return Boundary(f"a message of {source} was dropped", logger, MESSAGES_DROPPED.labels(source))
