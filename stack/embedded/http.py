"""Just enough HTTP/1.1 to ask our own Envoy, without the memory of a client library."""

import asyncio
from collections.abc import Mapping


async def request(
    address: str, method: str, path: str, headers: Mapping[str, str] | None = None, timeout_seconds: float = 5.0
) -> tuple[int, bytes]:
    """The status and the body; (0, b"") without an answer. `address`: host:port, or unix:PATH."""
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await _connect(address)
            try:
                lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close", "content-length: 0"]
                lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
                writer.write("\r\n".join([*lines, "", ""]).encode())
                return _parse(await reader.read())
            finally:
                writer.transport.abort()
                await asyncio.sleep(0)  # lets the transport close its socket
    except (OSError, EOFError, ValueError, TimeoutError):
        return 0, b""


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


def _parse(answer: bytes) -> tuple[int, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if b"transfer-encoding: chunked" in head.lower():
        body = _unchunked(body)
    return status, body


def _unchunked(body: bytes) -> bytes:
    pieces = []
    while body:
        size_text, _, rest = body.partition(b"\r\n")
        size = int(size_text.partition(b";")[0], 16)
        if size == 0:
            break
        pieces.append(rest[:size])
        body = rest[size + 2 :]
    return b"".join(pieces)
