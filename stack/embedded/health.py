"""Whether an embedded server does its work: each is asked over its own protocol to do a little of it.

A server that answers and cannot write is a finding too. While the disk is full a restart is no cure, and afterwards it
is one for NATS alone: a stream whose write has failed takes no message any more until NATS is started again. A probe
raises TimeoutError where it gets no answer: the watchdog judges by how long.
"""

import asyncio
import json
import os
import re
from pathlib import Path

from common import names
from stack.children.child import Finding, Probe
from stack.embedded import http, probes
from stack.embedded.probes import USER, answer

_FULL_BYTES = 1 << 20  # with less there is no room for anything
_ROOM_BYTES = 16 << 20  # with so much a server can be started again
_STORE_SECONDS = 4.0  # for one message, under the watchdog's own deadline
_LOG_BYTES = 1 << 20
_NOT_STORED = re.compile(rb"failed to store a msg on stream '[^'>]*> ([A-Za-z0-9_-]+)': ([^\r\n]{0,200})")
_REPLY = "_INBOX.health"


def postgres(address: str, folder: Path) -> Probe:
    """It takes a session as far as asking for the password."""

    async def probe() -> Finding | None:
        if await probes.postgres_accepts(address):
            return _full(folder)
        if full := _full(folder):
            return full
        raise TimeoutError  # or it recovers from a crash of its own, which takes its time

    return probe


def valkey(address: str, folder: Path, password: str) -> Probe:
    """It takes a write."""

    async def probe() -> Finding | None:
        command = f"AUTH {password}\r\nSET {names.KEY_HEALTH} 1 EX 60\r\n".encode()
        found = await answer(address, command, -1)
        if found is None:
            raise TimeoutError
        if found.startswith(b"+OK\r\n+OK"):
            return _full(folder)
        words = found.partition(b"\r\n")[2].decode(errors="replace").strip()
        return _full(folder) or Finding(f"it takes no write: {words}", curable=False)

    return probe


def envoy(admin_address: str) -> Probe:
    """Its main thread answers, whatever it says."""

    async def probe() -> Finding | None:
        status, _ = await http.request(admin_address, "GET", "/ready")
        if not status:
            raise TimeoutError
        return None

    return probe


def nats(address: str, folder: Path, log: Path, password: str) -> Probe:
    """It stores a message, and none of its streams has failed to store one since it was started."""
    return _Nats(address, folder, log, password).probe


class _Nats:
    """What NATS says of its streams: one whose write failed is silent from then on, and only its log says so."""

    def __init__(self, address: str, folder: Path, log: Path, password: str) -> None:
        self._address, self._folder, self._log, self._password = address, folder, log, password
        self._read_bytes = _size(log)  # what runs before is no matter
        self._server_id = ""  # of its present run
        self._failed: dict[str, str] = {}  # stream, and why its last write failed

    async def probe(self) -> Finding | None:
        try:
            answered = await self._ask()
        except (OSError, EOFError, ValueError) as problem:
            raise TimeoutError from problem
        if full := _full(self._folder):
            return full
        room = _free_bytes(self._folder) >= _ROOM_BYTES
        if self._failed:
            what = ", ".join(f"{stream} ({why})" for stream, why in sorted(self._failed.items()))
            return Finding(f"it cannot store messages of {what}", curable=room)
        return None if answered else Finding("it answers and stores no message", curable=room)

    async def _ask(self) -> bool:
        host, _, port = self._address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            info = json.loads((await reader.readline()).removeprefix(b"INFO "))
            self._note_failures(str(info.get("server_id", "")))
            return await self._stores(reader, writer)
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)  # lets the transport close its socket

    async def _stores(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether a message into DECISIONS, which keeps one of a kind, is acknowledged. No such stream is no matter."""
        login = {"user": USER, "pass": self._password, "verbose": False, "headers": True, "no_responders": True}
        subject, payload = names.decision_subject("health"), b"{}"
        writer.write(
            b"CONNECT %b\r\nSUB %b 1\r\nPUB %b %b %d\r\n%b\r\n"
            % (json.dumps(login).encode(), _REPLY.encode(), subject.encode(), _REPLY.encode(), len(payload), payload)
        )
        try:
            async with asyncio.timeout(_STORE_SECONDS):
                while line := await reader.readline():
                    if line.startswith(b"-ERR"):
                        raise OSError(line.decode(errors="replace").strip())
                    if line.startswith((b"MSG ", b"HMSG ")):
                        return line.startswith(b"HMSG ") or b'"error"' not in await reader.readline()
        except TimeoutError:
            return False
        raise OSError("it closed the connection")

    def _note_failures(self, server_id: str) -> None:
        size = _size(self._log)
        if server_id != self._server_id:  # it was started again, and its streams with it
            self._server_id, self._failed, self._read_bytes = server_id, {}, size
        start = self._read_bytes if self._read_bytes <= size else 0  # the log was emptied
        start = max(start, size - _LOG_BYTES)
        self._read_bytes = size
        try:
            with open(self._log, "rb") as file:
                file.seek(start)
                lines = file.read(size - start)
        except OSError:
            return
        for stream, why in _NOT_STORED.findall(lines):
            self._failed[stream.decode()] = why.rpartition(b": ")[2].decode(errors="replace")


def _full(folder: Path) -> Finding | None:
    if _free_bytes(folder) >= _FULL_BYTES:
        return None
    return Finding(f"the disk is full that holds {folder}", curable=False)


def _free_bytes(folder: Path) -> int:
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
