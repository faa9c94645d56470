"""The client of Valkey: connecting, deadlines, pipelines and Lua scripts over one connection that batches its writes.

A redis-py call awaited alone costs 45 us of CPU. Here the commands of one turn of the event loop share one write and
one read, which is 4 to 6 us each under load. There is one connection only, so Valkey runs the calls in the order they
were made. The parser is hiredis, which redis-py uses too.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, Protocol, cast
from urllib.parse import unquote, urlsplit

import hiredis

logger = logging.getLogger(__name__)
_DEFAULT_PORT = 6379
_WRITE_SECONDS = 0.001  # between two writes at least, so that a busy service writes many commands at once
_KEYS_PER_SCAN = 1000

Command = tuple[str | bytes | int, ...]
Reply = Any  # bytes, int, None or lists of these, as the command has it (RESP2)


class ValkeyError(Exception):
    """Valkey did not answer in time, or answered with an error."""


class ScriptMissingError(ValkeyError):
    """EVALSHA named a script that this Valkey does not have (NOSCRIPT): it was started or flushed since."""


class Commands(Protocol):
    """What sends commands to Valkey."""

    async def call(self, *command: str | bytes | int) -> Reply: ...
    async def pipeline(self, commands: Sequence[Command]) -> list[Reply]: ...


@dataclass(frozen=True, slots=True)
class _Address:
    """What a URL says."""

    host: str
    port: int
    tls: bool
    greeting: tuple[Command, ...]  # AUTH and SELECT, as far as the URL needs them

    @classmethod
    def parse(cls, url: str) -> "_Address":
        parts = urlsplit(url)
        if parts.scheme not in {"redis", "rediss", "valkey", "valkeys"} or not parts.hostname:
            raise ValueError("the Valkey URL must be redis://[user:password@]host[:port][/database]")
        greeting: list[Command] = []
        if parts.password is not None:
            user = (unquote(parts.username),) if parts.username else ()
            greeting.append(("AUTH", *user, unquote(parts.password)))
        database = parts.path.strip("/")
        if database not in {"", "0"}:
            greeting.append(("SELECT", database))
        tls = parts.scheme in {"rediss", "valkeys"}
        return cls(parts.hostname, parts.port or _DEFAULT_PORT, tls, tuple(greeting))


async def _connect(address: _Address, call_seconds: float) -> "_Connection":
    """A connection to the server that takes writes now; raises ValkeyError, OSError or TimeoutError.

    The only place that chooses a server for a URL: Sentinel would be asked here, and a cluster's slots mapped.
    """
    context = ssl.create_default_context() if address.tls else None
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: _Connection(call_seconds), address.host, address.port, ssl=context
    )
    try:
        for command in address.greeting:
            reply = await connection.send(command)
            if isinstance(reply, hiredis.ReplyError):
                raise _error(reply)
    except BaseException:
        connection.end()
        raise
    return connection


class Valkey:
    """Connects on the first call, and again after a loss. Made by `connect_valkey`, or closed with `close`."""

    def __init__(self, url: str, *, call_seconds: float) -> None:
        """`call_seconds` is the deadline of a reply, and of connecting."""
        self._address = _Address.parse(url)
        self._call_seconds = call_seconds
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    async def call(self, *command: str | bytes | int) -> Reply:
        """One command's reply; raises ValkeyError. It may have been run even when no reply came."""
        connection = self._connection
        if connection is None or connection.lost:
            connection = await self._connected()
        reply = await connection.send(command)
        if isinstance(reply, hiredis.ReplyError):
            raise _error(reply)
        return reply

    async def pipeline(self, commands: Sequence[Command]) -> list[Reply]:
        """The replies, in order; one that is an error is a ValkeyError. Raises it when not every reply came."""
        connection = self._connection
        if connection is None or connection.lost:
            connection = await self._connected()
        replies = await asyncio.gather(*[connection.send(command) for command in commands])
        return [_error(reply) if isinstance(reply, hiredis.ReplyError) else reply for reply in replies]

    async def transaction(self, commands: Sequence[Command]) -> list[Reply]:
        """The replies of commands between which no other is run; raises ValkeyError."""
        *_, replies = await self.pipeline([("MULTI",), *commands, ("EXEC",)])
        for reply in [replies] if isinstance(replies, ValkeyError) else replies:
            if isinstance(reply, Exception):
                raise reply if isinstance(reply, ValkeyError) else _error(reply)
        return list(replies)

    async def scan(self, pattern: str, kind: str = "") -> AsyncIterator[bytes]:
        """Every key that matches and is there all the while, of that type if one is given; some may come twice."""
        cursor, of_kind = b"0", ("TYPE", kind) if kind else ()
        while True:
            cursor, keys = await self.call("SCAN", cursor, "MATCH", pattern, "COUNT", _KEYS_PER_SCAN, *of_kind)
            for key in keys:
                yield key
            if cursor == b"0":
                return

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.end()
            self._connection = None

    async def _connected(self) -> "_Connection":
        try:
            async with asyncio.timeout(self._call_seconds), self._connecting:
                if self._connection is None or self._connection.lost:
                    self._connection = await _connect(self._address, self._call_seconds)
                return self._connection
        except (OSError, TimeoutError) as problem:
            raise ValkeyError(f"cannot connect: {problem!r}") from problem


@asynccontextmanager
async def connect_valkey(url: str, *, call_seconds: float) -> AsyncIterator[Valkey]:
    """A client that is closed at the end; it connects on first use."""
    valkey = Valkey(url, call_seconds=call_seconds)
    try:
        yield valkey
    finally:
        await valkey.close()


class Script:
    """A Lua script, called by its digest and sent whole only to a Valkey that does not have it.

    giving_back.lua, which authz's and billing's scripts share, goes in front.
    """

    def __init__(self, valkey: Commands, package: str, name: str) -> None:
        self._valkey = valkey
        self._text = "".join(
            files(folder).joinpath(file).read_text(encoding="utf-8")
            for folder, file in (("storage", "giving_back.lua"), (package, name))
        )
        self._sha = sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    async def load(self) -> None:
        await self._valkey.call("SCRIPT", "LOAD", self._text)

    async def run(self, *arguments: str | bytes | int) -> Reply:
        """One call, from the number of keys on; raises ValkeyError, and may then have run all the same."""
        try:
            return await self._valkey.call("EVALSHA", self._sha, *arguments)
        except ScriptMissingError:
            return await self._valkey.call("EVAL", self._text, *arguments)

    async def run_all(self, calls: Sequence[Command]) -> list[Reply]:
        """Many calls in one pipeline, in order; raises ValkeyError when one failed. Some may then have run."""
        replies = await self._valkey.pipeline([("EVALSHA", self._sha, *call) for call in calls])
        if any(isinstance(reply, ScriptMissingError) for reply in replies):
            await self.load()
            missing = [number for number, reply in enumerate(replies) if isinstance(reply, ScriptMissingError)]
            again = await self._valkey.pipeline([("EVALSHA", self._sha, *calls[number]) for number in missing])
            for number, reply in zip(missing, again, strict=True):
                replies[number] = reply
        for reply in replies:
            if isinstance(reply, ValkeyError):
                raise reply
        return replies


def _error(reply: Exception) -> ValkeyError:
    text = str(reply)
    return ScriptMissingError(text) if text.startswith("NOSCRIPT") else ValkeyError(text)


_Waiting = tuple["asyncio.Future[Reply]", float]  # a reply's future, and its deadline


class _Connection(asyncio.Protocol):
    """Replies come in the order of the commands; a reply whose caller was cancelled or timed out is dropped.

    Commands that are made while replies are outstanding are sent together after them: a write to a socket costs as much
    CPU as a check's own work. One timer watches all deadlines: a timeout for each call would cost as much as the call.
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

    def send(self, command: Command) -> "asyncio.Future[Reply]":
        """The reply's future; its result is a hiredis.ReplyError when Valkey answers with an error."""
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
                future.exception()  # marks it as retrieved: its caller may be gone
        self._sent.clear()
        self._unsent.clear()

    def _watch(self) -> None:
        """Fails the calls that are past their deadline, and sets the timer for the next deadline."""
        now = self._loop.time()
        for future, deadline in (*self._sent, *(waiting for _, waiting in self._unsent)):
            if deadline > now:
                self._loop.call_at(deadline, self._watch)
                return
            if not future.done():
                future.set_exception(ValkeyError("no answer in time"))
        self._watched = False

    def _flush_soon(self) -> None:
        """Sends after every caller that is ready in this turn has added its command, or a little later."""
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
