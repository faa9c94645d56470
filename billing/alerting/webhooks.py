"""Tells alerts to the operator's webhook: signed, one after the other, again and again until it takes them.

A request says `x-uplion-signature: t=<unix seconds>,v1=<hex>`: HMAC-SHA-256 under the shared secret of `<t>.<body>`.
The same alert may come twice, with the same `id`. Redirects are not followed; only an answer's status is read.
"""

import asyncio
import hashlib
import hmac
import http.client
import json
import logging
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from billing import metrics
from common import names

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

logger = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
_TRY_SECONDS = 15.0
_SOCKET_SECONDS = 10.0
_AT_ONCE = 20
_FIRST_RETRY_SECONDS = 10
_LONGEST_RETRY_SECONDS = 3600
_GIVE_UP_DAYS = 7
_SECRET_CHARACTERS_LEAST = 16
_DUE = """
    SELECT alerts.*, outbox.tries FROM alert_outbox AS outbox JOIN alerts ON alerts.id = outbox.alert
    WHERE outbox.next_time <= now() ORDER BY outbox.next_time, alerts.id LIMIT $1
"""
_LATER = """
    UPDATE alert_outbox SET tries = tries + 1, next_time = now() + make_interval(secs => $2) WHERE alert = $1
"""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to, checked. Nothing of it is ever logged: such addresses often hold secrets."""

    secure: bool
    host: str
    port: int | None
    path: str
    secret: bytes


def target(url: str, secret: str | None) -> Target:
    """Raises ValueError, without the address, for one that cannot be used."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.fragment:
        raise ValueError("the alert webhook's address must be http(s)://host[:port]/path")
    if secret is None or len(secret) < _SECRET_CHARACTERS_LEAST:
        raise ValueError(f"the alert webhook needs a secret of at least {_SECRET_CHARACTERS_LEAST} characters")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme == "https", parts.hostname, parts.port, path, secret.encode())


def signature(secret: bytes, body: bytes, unix_seconds: int) -> str:
    """The header's value."""
    digest = hmac.new(secret, f"{unix_seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={unix_seconds},v1={digest}"


class Webhook:
    """Empties the outbox."""

    def __init__(self, pool: "Pool", where: Target) -> None:
        self._pool = pool
        self._target = where

    async def deliver(self) -> None:
        """One try for each alert that is due, oldest first; stops at the first failure, since others would fail too."""
        await self._pool.execute(
            "DELETE FROM alert_outbox USING alerts WHERE alerts.id = alert"
            " AND create_time < now() - make_interval(days => $1)",
            _GIVE_UP_DAYS,
        )
        for row in await self._pool.fetch(_DUE, _AT_ONCE):
            problem = await self._try(_body(row))
            metrics.BILLING_WEBHOOK.labels("failed" if problem else "delivered").inc()
            if problem is None:
                await self._pool.execute("DELETE FROM alert_outbox WHERE alert = $1", row["id"])
                continue
            seconds = min(_FIRST_RETRY_SECONDS * 2 ** min(row["tries"], 10), _LONGEST_RETRY_SECONDS)
            logger.warning(
                "alert is not delivered yet", extra={"alert": row["id"], "problem": problem, "retry_seconds": seconds}
            )
            await self._pool.execute(_LATER, row["id"], float(seconds))
            return

    async def _try(self, body: bytes) -> str | None:
        """What went wrong; None when it was taken."""
        kind = http.client.HTTPSConnection if self._target.secure else http.client.HTTPConnection
        connection = kind(self._target.host, self._target.port, timeout=_SOCKET_SECONDS)
        try:
            async with asyncio.timeout(_TRY_SECONDS):
                status = await asyncio.to_thread(self._post, connection, body)
        except TimeoutError:
            return "no answer in time"
        except (OSError, http.client.HTTPException) as problem:
            return type(problem).__name__
        finally:
            with suppress(OSError):
                if connection.sock is not None:  # wakes a thread that still waits for a slow answer
                    connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()
        return None if 200 <= status < 300 else f"HTTP {status}"

    def _post(self, connection: http.client.HTTPConnection, body: bytes) -> int:
        headers = {
            "content-type": "application/json",
            "user-agent": "uplion",
            names.HEADER_SIGNATURE: signature(self._target.secret, body, int(time.time())),
        }
        connection.request("POST", self._target.path, body, headers)
        return connection.getresponse().status


def _body(row: "asyncpg.Record") -> bytes:
    return json.dumps(
        {
            "id": row["id"],
            "kind": row["kind"],
            "level": row["level"],
            "account": row["account"],
            "subject": row["subject"],
            "period": row["period"],
            "message": row["message"],
            "facts": json.loads(row["facts"]),
            "create_time": row["create_time"].isoformat(),
        }
    ).encode()
