"""The two ends of a NATS connection, with short cuts for inboxes that many messages come to, and for what is sent.

A delivered message costs nats-py (2.16) about 40 us: regular expressions on a shrinking buffer, an e-mail parser for
its headers, a queue and a task for its subscription. `Wire` takes the place of nats-py's parser object. It hands the
messages of diverted subscriptions straight to a function, unread, and everything else to the client, as the original
does. `send` writes a message without a task switch, and can leave what is not urgent to the next write: a system call
costs as much as the message. Only this module touches the client's private parts, which is why pyproject.toml pins its
minor version.
"""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress

from nats import errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.errors import ProtocolError

from common.boundary import Boundary
from common.metrics import MESSAGES_DROPPED

logger = logging.getLogger(__name__)

# subject, reply subject, header block (empty: none) and payload of one message
Sink = Callable[[bytes, bytes, bytes, bytes], None]
_MAX_LINE_BYTES = 4096
_SOON_SECONDS = 0.002  # what is not urgent waits for something that is, at most this long
_SUBJECT = re.compile(r"[!-~]+").fullmatch  # a space or a line's end in a subject would begin another command


class Wire:
    """Parses what the server sends. One for each connection, made by `new_client`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sinks: dict[bytes, Sink] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._boundary = Boundary("a message could not be handled", logger, MESSAGES_DROPPED.labels("inbox"))
        self.reset()

    def reset(self) -> None:
        """Forgets half a message: the connection is a new one."""
        self._parts: list[bytes] = []
        self._bytes = 0
        self._needed = 0

    def divert(self, subscription: Subscription, sink: Sink) -> None:
        """From now on its messages go to `sink`, which must be quick, until `restore`."""
        self._sinks[str(subscription._id).encode()] = sink

    def restore(self, subscription: Subscription) -> None:
        """Ends `divert`."""
        self._sinks.pop(str(subscription._id).encode(), None)

    def flush(self, *, now: bool) -> None:
        """Wakes the client's writer, if there is something to write."""
        if not now:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_SOON_SECONDS, self._timed)
            return
        client, queue = self._client, self._client._flush_queue
        if client.is_connected and queue is not None and queue.empty() and client._pending_data_size:
            queue.put_nowait(asyncio.get_running_loop().create_future())

    def push(self) -> None:
        """Hands the socket what is pending, without waiting for the client's writer to have its turn."""
        client = self._client
        if client.is_connected and client._pending_data_size and client._transport is not None:
            pending, client._pending, client._pending_data_size = client._pending, [], 0
            client._transport.writelines(pending)

    def _timed(self) -> None:
        self._timer = None
        self.flush(now=True)

    async def parse(self, data: bytes = b"") -> None:
        """Takes the next bytes; the client's read loop calls it. Raises ProtocolError for what no server sends."""
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes < self._needed:  # the rest of a long message: joined once it is there
            return
        buffer = b"".join(self._parts) if len(self._parts) > 1 else data
        self.reset()
        position, end = 0, len(buffer)
        while position < end:
            line_end = buffer.find(b"\r\n", position)
            if line_end < 0:
                if end - position > _MAX_LINE_BYTES:
                    raise ProtocolError("nats: unknown protocol")
                break
            start = line_end + 2
            words = buffer[position:line_end].split()
            if words[:1] == [b"HMSG"]:
                body, reply = start + int(words[-2]), words[3] if len(words) == 6 else b""
            elif words[:1] == [b"MSG"]:
                body, reply = start, words[3] if len(words) == 5 else b""
            else:
                await self._control(buffer[position:line_end])
                position = start
                continue
            stop = start + int(words[-1])
            if end < stop + 2:
                self._needed = stop + 2 - position
                break
            position = stop + 2
            sink = self._sinks.get(words[2])
            if sink is not None:
                with self._boundary:
                    sink(words[1], reply, buffer[start:body], buffer[body:stop])
            else:
                header, payload = buffer[start:body], buffer[body:stop]
                await self._client._process_msg(int(words[2]), words[1], reply, payload, header)
        if position < end:
            self._parts.append(buffer[position:])
            self._bytes = end - position

    async def _control(self, line: bytes) -> None:
        kind, _, rest = line.partition(b" ")
        if kind == b"PING":
            await self._client._process_ping()
        elif kind == b"PONG":
            await self._client._process_pong()
        elif kind == b"INFO":
            await self._client._process_info(json.loads(rest))
        elif kind == b"-ERR":
            await self._client._process_err(rest.decode().lower())
        elif kind != b"+OK":
            raise ProtocolError("nats: unknown protocol")


class _Transport(TcpTransport):
    """Is the same on every loop where a connection is lost that the client still believes in: `writelines` raises an
    OSError, which the client understands, and `write` drops what nobody can read.

    asyncio's own `writelines` fails with a TypeError there (Python 3.12 and 3.13), both of uvloop with a RuntimeError.
    """

    def __bool__(self) -> bool:
        return True  # else the client makes one of its own

    @property
    def lost(self) -> bool:
        """Whether nothing can be written any more, or yet."""
        return self._io_writer is None or self._io_writer.transport.is_closing()

    def write(self, payload: bytes) -> None:
        if not self.lost:
            super().write(payload)  # type: ignore[no-untyped-call]

    def writelines(self, payload: list[bytes]) -> None:
        if self.lost:
            raise ConnectionResetError("the connection to NATS is lost")
        super().write(b"".join(payload))  # type: ignore[no-untyped-call]


class _Client(Client):
    """Closes to the end, whatever has become of its connection."""

    def __init__(self) -> None:
        super().__init__()
        self._transport = _Transport()  # type: ignore[no-untyped-call]

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        try:
            await super()._close(status, do_cbs)
        except OSError:  # what was left to send cannot be sent; without it the rest of closing does not write
            self._pending, self._pending_data_size = [], 0
            self._status = Client.DISCONNECTED
            await super()._close(status, do_cbs)


def new_client() -> tuple[Client, Wire]:
    """A client that is not connected yet, and what reads for it."""
    client = _Client()
    wire = Wire(client)
    client._ps = wire  # type: ignore[assignment]
    return client, wire


async def close(client: Client, seconds: float) -> None:
    """Ends a client of `new_client`; before, for at most so many seconds and while it is connected, what came is
    processed and what was published is sent.
    """
    try:
        with suppress(errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                if client.is_connected and isinstance(client._transport, _Transport) and not client._transport.lost:
                    drains = [each.drain() for each in client._subs.values()]  # type: ignore[no-untyped-call]
                    await asyncio.gather(*drains, return_exceptions=True)
                    await client.flush()
    finally:
        await client.close()


def of(client: Client) -> Wire:
    """What reads for a client of `new_client`."""
    wire = client._ps
    assert isinstance(wire, Wire), "this client was not made here"
    return wire


def send(
    client: Client,
    subject: str,
    payload: bytes,
    reply: str = "",
    headers: Mapping[str, str] | None = None,
    *,
    now: bool = True,
) -> None:
    """Publishes as the client does, but at once: neither it nor its caller waits. Raises nats.errors.Error, also for
    what would make the server close the connection: a subject that is none, or too large a message.

    Not `now`, it leaves in one piece with whatever is sent next, within 2 ms. While disconnected it is kept, as far as
    there is room.
    """
    if client.is_closed:
        raise errors.ConnectionClosedError
    check_subject(subject)
    size = len(payload)
    if headers:
        # Joined and not formatted: a member of nats-py's Header formats as "Header.MSG_ID".
        lines = "".join([": ".join((name, " ".join(value.split()))) + "\r\n" for name, value in headers.items()])
        block = f"NATS/1.0\r\n{lines}\r\n".encode()
        size += len(block)
        head = f"HPUB {subject} {reply} {len(block)} {len(block) + len(payload)}\r\n".encode()
        command = b"".join((head, block, payload, b"\r\n"))
    else:
        command = b"".join((f"PUB {subject} {reply} {len(payload)}\r\n".encode(), payload, b"\r\n"))
    if size > client.max_payload:
        raise errors.MaxPayloadError
    if client._pending_data_size + len(command) > client._max_pending_size:
        raise errors.OutboundBufferLimitError
    client._pending.append(command)
    client._pending_data_size += len(command)
    of(client).flush(now=now)


def check_subject(subject: str) -> None:
    """Raises nats.errors.BadSubjectError for a text that the protocol cannot hold as a subject."""
    if not _SUBJECT(subject):
        raise errors.BadSubjectError


async def write(client: Client, commands: bytes) -> None:
    """Sends finished protocol lines in one piece; while disconnected they wait as those of `publish` do."""
    await client._send_command(commands)
    await client._flush_pending()
