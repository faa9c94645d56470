"""Probes of servers over their own protocols: whether they listen, serve and are recent enough; without clients."""

import asyncio
import json
import struct
from urllib.parse import urlsplit

from stack.embedded import binaries
from stack.errors import StackError

HOST = "127.0.0.1"
USER = "uplion"
_PROBE_TIMEOUT_SECONDS = 2.0
_DEFAULT_PORTS = {"postgres": 5432, "postgresql": 5432, "redis": 6379, "rediss": 6379, "nats": 4222, "tls": 4222}
_SCHEMES = {"postgres": ("postgres", "postgresql"), "redis": ("redis", "rediss"), "nats": ("nats", "tls")}
_FIRST_BYTES = 1024
_POSTGRES_STARTING = b"57P03"  # SQLSTATE cannot_connect_now
_STARTUP_FIELDS = f"user\0{USER}\0database\0postgres\0\0".encode()
_POSTGRES_STARTUP = struct.pack("!ii", 8 + len(_STARTUP_FIELDS), 196608) + _STARTUP_FIELDS  # protocol 3.0


async def nats_facts(address: str) -> dict[str, object] | None:
    """The INFO of a NATS server; None when none answers."""
    line = await answer(address, b"", None)
    if line is None or not line.startswith(b"INFO "):
        return None
    try:
        facts = json.loads(line[5:])
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


async def serves(url: str) -> bool:
    """Asks once whether a server takes sessions at a URL; where it speaks TLS, whether it listens."""
    scheme, address = _located(url)
    if scheme in ("postgres", "postgresql"):
        return await postgres_accepts(address)
    if scheme == "redis":
        return await answer(address, b"PING\r\n", 1) is not None
    return await answer(address, b"", 0) is not None


def _located(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    return parts.scheme, f"{parts.hostname or HOST}:{port}"


async def check_external(name: str, url: str) -> None:
    """Refuses a server given by URL that cannot be reached or is too old."""
    try:
        scheme, address = _located(url)
        if scheme not in _SCHEMES[name]:
            raise KeyError(scheme)
    except (KeyError, ValueError):
        wanted = " or ".join(f"{scheme}://..." for scheme in _SCHEMES[name])
        raise StackError(f"--{name}-url must be like {wanted}") from None
    if scheme == "nats":
        facts = await nats_facts(address)
        if facts is None:
            raise StackError(f"no NATS server answers at {address} (--nats-url)")
        binaries.check_nats_version(str(facts.get("version", "")), address)
        if not facts.get("jetstream"):
            raise StackError(f"the NATS server at {address} runs without JetStream; start it with JetStream enabled")
    elif await answer(address, b"", 0) is None:
        raise StackError(f"no {name} server answers at {address} (--{name}-url)")


async def postgres_accepts(address: str) -> bool:
    """It asks for a password, or refuses us for any reason but that it is still starting."""
    reply = await answer(address, _POSTGRES_STARTUP, -1)
    return reply is not None and reply != b"" and _POSTGRES_STARTING not in reply


async def answer(address: str, request: bytes, size: int | None) -> bytes | None:
    """The first `size` bytes of the answer (None: a line, -1: what comes first); None when there is no such answer."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(request)
                if size == -1:
                    return await reader.read(_FIRST_BYTES)
                return await (reader.readline() if size is None else reader.readexactly(size))
            finally:
                writer.transport.abort()
                await asyncio.sleep(0)  # lets the transport close its socket, also at a loop's end
    except (OSError, EOFError, TimeoutError):
        return None
