"""Webhook: delivers alerts to the operator's endpoint, one after the other, and retries until each is accepted.

Requests are signed by Standard Webhooks (https://www.standardwebhooks.com): `webhook-signature` is `v1,<base64>`, the
HMAC-SHA-256 of `<webhook-id>.<webhook-timestamp>.<body>` under the shared secret. An alert may be delivered twice, with
the same `webhook-id`. Redirects are not followed, and of a response only the status is read.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2

from billing import metrics

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

logger = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
_TRY_SECONDS = 15.0  # for a whole request
_NETWORK_SECONDS = 10.0  # for a connection, a write, a read
_ALERTS_PER_RUN = 20
_FIRST_RETRY_SECONDS = 10
_LONGEST_RETRY_SECONDS = 3600
_GIVE_UP_DAYS = 7
_SECRET_LEAST = 16  # characters, or bytes behind whsec_
_BASE64_PREFIX = "whsec_"
_DUE = """
    SELECT alerts.*, outbox.tries FROM alert_outbox AS outbox JOIN alerts ON alerts.id = outbox.alert
    WHERE outbox.next_time <= now() ORDER BY outbox.next_time, alerts.id LIMIT $1
"""
_LATER = """
    UPDATE alert_outbox SET tries = tries + 1, next_time = now() + make_interval(secs => $2) WHERE alert = $1
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A validated endpoint. Neither part is ever logged: such addresses often hold secrets."""

    url: httpx2.URL = field(repr=False)
    secret: bytes = field(repr=False)


def target(url: str, secret: str | None) -> Target:
    """Validates an address, and a secret: `whsec_<base64>` or other text. Raises ValueError, without the address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.fragment:
        raise ValueError("the alert webhook's address must be http(s)://host[:port]/path")
    return Target(_url(url), _key(secret or ""))


def _url(url: str) -> httpx2.URL:
    try:
        return httpx2.URL(url)
    except httpx2.InvalidURL:
        raise ValueError("the alert webhook's address cannot be read") from None


def _key(secret: str) -> bytes:
    key = secret.encode()
    if secret.startswith(_BASE64_PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(_BASE64_PREFIX), validate=True)
        except binascii.Error:
            raise ValueError(f"the alert webhook's secret has no base64 behind {_BASE64_PREFIX}") from None
    if len(key) < _SECRET_LEAST:
        raise ValueError(f"the alert webhook needs a secret of at least {_SECRET_LEAST} characters")
    return key


def signature(key: bytes, message_id: str, unix_seconds: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    digest = hmac.new(key, f"{message_id}.{unix_seconds}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


class Webhook:
    """Delivers the alerts of the outbox."""

    def __init__(self, pool: "Pool", where: Target) -> None:
        self._pool = pool
        self._target = where
        self._tls = ssl.create_default_context()  # the system's certificate authorities
        for name in ("httpx2", "httpcore2"):  # they log addresses
            logging.getLogger(name).setLevel(logging.WARNING)

    async def deliver(self) -> None:
        """Tries each alert that is due once, oldest first; stops at the first failure, since others would fail too."""
        await self._pool.execute(
            "DELETE FROM alert_outbox USING alerts WHERE alerts.id = alert"
            " AND create_time < now() - make_interval(days => $1)",
            _GIVE_UP_DAYS,
        )
        due = await self._pool.fetch(_DUE, _ALERTS_PER_RUN)
        if not due:
            return
        async with httpx2.AsyncClient(
            verify=self._tls, timeout=_NETWORK_SECONDS, follow_redirects=False, trust_env=False
        ) as client:
            for row in due:
                if not await self._deliver(client, row):
                    return

    async def _deliver(self, client: httpx2.AsyncClient, row: "asyncpg.Record") -> bool:
        problem = await self._try(client, f"alert-{row['id']}", _body(row))
        metrics.BILLING_WEBHOOK.labels("failed" if problem else "delivered").inc()
        if problem is None:
            await self._pool.execute("DELETE FROM alert_outbox WHERE alert = $1", row["id"])
            return True
        seconds = min(_FIRST_RETRY_SECONDS * 2 ** min(row["tries"], 10), _LONGEST_RETRY_SECONDS)
        logger.warning(
            "alert is not delivered yet", extra={"alert": row["id"], "problem": problem, "retry_seconds": seconds}
        )
        await self._pool.execute(_LATER, row["id"], float(seconds))
        return False

    async def _try(self, client: httpx2.AsyncClient, message_id: str, body: bytes) -> str | None:
        """Sends one request; what went wrong, or None when it was accepted."""
        unix_seconds = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "uplion",
            "webhook-id": message_id,
            "webhook-timestamp": str(unix_seconds),
            "webhook-signature": signature(self._target.secret, message_id, unix_seconds, body),
        }
        request = client.build_request("POST", self._target.url, content=body, headers=headers)
        try:
            async with asyncio.timeout(_TRY_SECONDS):
                response = await client.send(request, stream=True)  # the body stays unread
                await response.aclose()
        except (httpx2.TimeoutException, TimeoutError):
            return "no answer in time"
        except httpx2.HTTPError as problem:
            return type(problem).__name__
        return None if response.is_success else f"HTTP {response.status_code}"


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
