"""Many streamed answers at once, each on a connection of its own, and what became of each."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from bench.load import request_bytes

_PAUSED_SECONDS = 1.0


@dataclass(eq=False)
class HeldStream(asyncio.Protocol):
    """One request. A slow one reads what has come, at most 512 bytes, once a second."""

    request: bytes
    slow: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    head: str = ""
    tokens: int = 0
    fate: str = "cut"  # "ok", "refused" (an HTTP error), "failed" (an error in the stream), "cut" (neither)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._tail = b""
        self._transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if not self.head:
            head, end, data = (self._tail + data).partition(b"\r\n\r\n")
            if not end:
                self._tail = head
                return
            self.head, self._tail = head.decode(), b""
        self.tokens += data.count(b'"content":"')
        self._tail = (self._tail + data)[-300:]
        if self._tail.endswith(b"0\r\n\r\n") or not self.began:
            self.fate = self._judged()
            self._transport.close()
        elif self.slow:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(_PAUSED_SECONDS, self._transport.resume_reading)

    def connection_lost(self, problem: Exception | None) -> None:
        self.ended.set()

    def _judged(self) -> str:
        if not self.began:
            return "refused"
        if b'"error"' in self._tail:
            return "failed"
        return "ok" if b"data: [DONE]" in self._tail else "cut"

    @property
    def began(self) -> bool:
        return self.head.startswith("HTTP/1.1 200")

    @property
    def request_id(self) -> str:
        lines = (line.partition(": ") for line in self.head.split("\r\n"))
        return next((value for name, _, value in lines if name.lower() == "x-request-id"), "")

    def leave(self) -> None:
        """The client goes away in the middle."""
        self._transport.abort()


async def hold(
    base_url: str, key: str, model: str, count: int, *, slow: bool = False, each_second: int = 200
) -> list[HeldStream]:
    """Opens so many streams."""
    parts = urlsplit(base_url)
    body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "stream": True, "max_tokens": 8000}
    request = request_bytes(base_url, "/chat/completions", key, body)
    loop = asyncio.get_running_loop()
    streams = []
    for number in range(count):
        stream = HeldStream(request, slow)
        await loop.create_connection(lambda each=stream: each, str(parts.hostname), parts.port or 80)  # type: ignore[misc]
        streams.append(stream)
        if number % (each_second // 20) == 0:
            await asyncio.sleep(0.05)
    return streams


def fates(streams: list[HeldStream]) -> Counter[str]:
    return Counter(stream.fate if stream.ended.is_set() else "runs" for stream in streams)
