"""One connection to Valkey that sends what many checks ask in one write.

A redis-py call awaited alone costs 45 us of CPU; here commands of one loop turn share one write and one read, which is
4 to 6 us each under load. One connection only, so Valkey runs our calls in the order they were made.
"""

import asyncio
import logging
import ssl
from collections import deque
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import hiredis

logger = logging.getLogger(__name__)
_DEFAULT_PORT = 6379
_WRITE_SECONDS = 0.001  # between two writes at least, so that a busy authz writes many commands at once


class ValkeyError(Exception):
    """Valkey did not answer, or answered with an error of its own."""


class ScriptMissingError(ValkeyError):
    """EVALSHA named a script that this Valkey does not have (NOSCRIPT): it is fresh."""


class Valkey:
    """Connects on the first call, and again after a loss. Close it with `close`."""

    def __init__(self, url: str, *, call_seconds: float, connect_seconds: float | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"redis", "rediss", "valkey", "valkeys"} or not parts.hostname:
            raise ValueError("the Valkey URL must be redis://[user:password@]host[:port][/database]")
        self._host, self._port = parts.hostname, parts.port or _DEFAULT_PORT
        self._ssl = ssl.create_default_context() if parts.scheme in {"rediss", "valkeys"} else None
        self._greeting: list[tuple[str, ...]] = []
        if parts.password is not None:
            user = (unquote(parts.username),) if parts.username else ()
            self._greeting.append(("AUTH", *user, unquote(parts.password)))
        database = parts.path.strip("/")
        if database not in {"", "0"}:
            self._greeting.append(("SELECT", database))
        self._call_seconds = call_seconds
        self._connect_seconds = connect_seconds if connect_seconds is not None else call_seconds
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    async def call(self, *command: str | bytes | int) -> Any:
        """One command's reply; raises ValkeyError. It may have been run even when no reply came."""
        connection = self._connection
        if connection is None or connection.lost:
            connection = await self._connect()
        found = await connection.send(command)
        if isinstance(found, hiredis.ReplyError):
            text = str(found)
            raise ScriptMissingError(text) if text.startswith("NOSCRIPT") else ValkeyError(text)
        return found

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.end()
            self._connection = None

    async def _connect(self) -> "_Connection":
        try:
            async with asyncio.timeout(self._connect_seconds), self._connecting:
                if self._connection is not None and not self._connection.lost:
                    return self._connection
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self._call_seconds), self._host, self._port, ssl=self._ssl
                )
                try:
                    for command in self._greeting:
                        reply = await connection.send(command)
                        if isinstance(reply, hiredis.ReplyError):
                            raise ValkeyError(str(reply))
                except BaseException:
                    connection.end()
                    raise
                self._connection = connection
                return connection
        except (OSError, TimeoutError) as problem:
            raise ValkeyError(f"cannot connect: {problem!r}") from problem


_Waiting = tuple["asyncio.Future[Any]", float]  # and when it is too late


class _Connection(asyncio.Protocol):
    """Replies come in the order of the commands; a reply nobody waits for any more is dropped.

    What comes while an answer is on its way goes out together after it: a write to a socket costs as much as a check's
    own work. One timer watches over all that waits: a timeout for each call would cost as much as the call.
    """

    def __init__(self, call_seconds: float) -> None:
        self._call_seconds = call_seconds
        self._loop = asyncio.get_running_loop()
        self._watched = self._flushing = False
        self._flushed_at = 0.0
        self._reader = hiredis.Reader(protocolError=ValkeyError, replyError=hiredis.ReplyError)
        self._sent: deque[_Waiting] = deque()
        self._unsent: list[tuple[bytes, _Waiting]] = []
        self._transport: asyncio.Transport | None = None
        self.lost = False

    def send(self, command: tuple[str | bytes | int, ...]) -> "asyncio.Future[Any]":
        if self.lost:
            raise ValkeyError("the connection is lost")
        reply = self._loop.create_future()
        waiting = (reply, self._loop.time() + self._call_seconds)
        self._unsent.append((hiredis.pack_command(command), waiting))
        self._flush_soon()
        if not self._watched:
            self._watched = True
            self._loop.call_later(self._call_seconds, self._watch)
        return reply

    def end(self) -> None:
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but ancestry

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                future, _ = self._sent.popleft()
                if not future.done():
                    future.set_result(reply)
        except (ValkeyError, IndexError) as problem:
            logger.warning("Valkey broke the protocol", extra={"problem": repr(problem)})
            self.end()
        self._flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        for future, _ in (*self._sent, *(waiting for _, waiting in self._unsent)):
            if not future.done():
                future.set_exception(ValkeyError(f"the connection was lost: {exc!r}"))
                future.exception()  # read: whoever waited may be gone
        self._sent.clear()
        self._unsent.clear()

    def _watch(self) -> None:
        """Gives up what waits for too long, and looks again when the next would."""
        now = self._loop.time()
        for future, late in (*self._sent, *(waiting for _, waiting in self._unsent)):
            if late > now:
                self._loop.call_at(late, self._watch)
                return
            if not future.done():
                future.set_exception(ValkeyError("no answer in time"))
        self._watched = False

    def _flush_soon(self) -> None:
        """After every check that is ready in this turn has added its own, or a little later."""
        if self._unsent and not self._sent and not self._flushing:
            self._flushing = True
            wait = self._flushed_at + _WRITE_SECONDS - self._loop.time()
            if wait <= 0:
                self._loop.call_soon(self._flush)
            else:
                self._loop.call_later(wait, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._flushed_at = self._loop.time()
        if self._transport is None or self.lost:
            return
        wanted = [(command, waiting) for command, waiting in self._unsent if not waiting[0].done()]
        self._unsent.clear()
        self._sent.extend(waiting for _, waiting in wanted)
        self._transport.write(b"".join(command for command, _ in wanted))
