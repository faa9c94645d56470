"""A lean HTTP/1.1 load client: keep-alive connections, one request at a time on each.

About 40 us of CPU for a request, so that on a small machine the client does not become what is measured.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Outcome:
    """What a run of load saw."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)  # seconds, of each request that succeeded
    chunks: int = 0  # streamed events, over all requests
    failures: int = 0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """Latency in seconds that `share` of the requests stayed under."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class _Connection(asyncio.Protocol):
    """One connection; `done` is resolved when the current answer is whole."""

    def __init__(self) -> None:
        self.done: asyncio.Future[bytes] | None = None
        self._buffer = bytearray()
        self.chunks = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.chunks += data.count(b"data: {")
        self._buffer += data
        if self._complete() and self.done is not None and not self.done.done():
            self.done.set_result(bytes(self._buffer))

    def connection_lost(self, problem: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(problem or ConnectionResetError("closed by the server"))

    def _complete(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self._buffer[:end].lower()
        if b"transfer-encoding: chunked" in head:
            return self._buffer.endswith(b"0\r\n\r\n")
        position = head.find(b"content-length: ")
        length = int(head[position + 16 :].split(b"\r\n", 1)[0])
        return len(self._buffer) >= end + 4 + length

    async def send(self, request: bytes, timeout: float) -> bytes:
        self._buffer.clear()
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(request)  # type: ignore[attr-defined]  # a TCP transport writes
        async with asyncio.timeout(timeout):
            return await self.done


def request_bytes(base_url: str, path: str, key: str, body: dict[str, Any]) -> bytes:
    """A POST as it goes over the wire."""
    parts = urlsplit(base_url)
    content = json.dumps(body).encode()
    head = (
        f"POST {parts.path}{path} HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def drive(base_url: str, request: bytes, *, connections: int, seconds: float, timeout: float = 30.0) -> Outcome:
    """Sends the request over and over on each connection for about `seconds`."""
    parts = urlsplit(base_url)
    loop = asyncio.get_running_loop()
    outcome = Outcome()
    opened = [(await loop.create_connection(_Connection, parts.hostname, parts.port))[1] for _ in range(connections)]
    began = time.perf_counter()

    async def one(connection: _Connection) -> None:
        while (sent := time.perf_counter()) - began < seconds:
            answer = await connection.send(request, timeout)
            if answer.startswith(b"HTTP/1.1 200"):
                outcome.latencies.append(time.perf_counter() - sent)
            else:
                outcome.failures += 1
                if outcome.failures == 1:
                    print(answer[:400])

    async with asyncio.TaskGroup() as tasks:
        for connection in opened:
            tasks.create_task(one(connection), name="load")
    outcome.seconds = time.perf_counter() - began
    for connection in opened:
        outcome.chunks += connection.chunks
        connection.transport.close()
    return outcome
