"""Receives the readiness and the heartbeats of child processes by systemd's sd_notify protocol.

The kernel adds the sender's pid to each datagram, so no process can announce the readiness of another.
"""

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from stack.children.processes import Process
from stack.errors import StackError

_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid
_DATAGRAM_BYTES = 4096


class Readiness:
    """One datagram socket, in a folder that no other user can enter."""

    def __init__(self, listener: socket.socket, address: str) -> None:
        self.address = address  # what children find in NOTIFY_SOCKET
        self._listener = listener
        self._addresses: dict[int, dict[str, str]] = {}
        self._news: dict[int, asyncio.Event] = {}
        self._running: dict[int, Process] = {}  # whose heartbeats are noted

    async def wait(self, process: Process, services: Iterable[str], timeout_seconds: float | None) -> dict[str, str]:
        """Waits until the process has announced all the services; returns their addresses.

        Must be called before anything else is awaited after the process was spawned.
        """
        missing = set(services)
        self._running = {pid: each for pid, each in self._running.items() if each.returncode is None}
        self._running[process.pid] = process
        addresses = self._addresses.setdefault(process.pid, {})
        news = self._news.setdefault(process.pid, asyncio.Event())
        try:
            with contextlib.ExitStack() as watching:
                if process.returncode is None:
                    watching.enter_context(process.at_end(news.set))
                async with asyncio.timeout(timeout_seconds):
                    while not missing <= addresses.keys():
                        if process.returncode is not None:
                            name, log = process.program.name, process.program.log
                            raise StackError(f"{name} ended while starting, {process.why_it_ended()}; see {log}")
                        await news.wait()
                        news.clear()
        except TimeoutError:
            not_ready, words = ", ".join(sorted(missing - addresses.keys())), process.last_words()
            why = f" ({words})" if words else ""
            raise StackError(
                f"{not_ready} was not ready within {timeout_seconds:.0f} s{why}; see {process.program.log}"
            ) from None
        finally:
            del self._addresses[process.pid], self._news[process.pid]
        return dict(addresses)

    def _on_readable(self) -> None:
        while True:
            try:
                data, ancillary, _, _ = self._listener.recvmsg(_DATAGRAM_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    self._receive(_CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0], data.decode(errors="replace"))

    def _receive(self, pid: int, text: str) -> None:
        lines = dict(line.partition("=")[::2] for line in text.splitlines())
        if lines.get("READY") == "1" and pid in self._addresses:
            service, _, address = lines.get("STATUS", "").partition(" ")
            self._addresses[pid][service] = address
            self._news[pid].set()
        if lines.get("WATCHDOG") == "1" and (process := self._running.get(pid)) is not None:
            process.heard_at = time.monotonic()
            process.troubles = _troubles(lines.get("X_UPLION_TROUBLES", ""))


def _troubles(text: str) -> dict[str, str]:
    try:
        found = json.loads(text or "{}")
    except ValueError:  # cut off: the first ones do
        return {"several tasks": "see the log"}
    return {str(name): str(why) for name, why in found.items()}


@contextlib.contextmanager
def readiness(path: Path) -> Iterator[Readiness]:
    """Listens at a path for the length of a block, on the running loop."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.bind(str(path))
        found = Readiness(listener, str(path))
        loop.add_reader(listener, found._on_readable)
        try:
            yield found
        finally:
            loop.remove_reader(listener)
