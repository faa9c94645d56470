"""Root signing: signs each past day's Merkle root over the heads of all hash chains, missed days included."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger import merkle
from ledger.merkle import FIRST_PREVIOUS, HEADS, Head

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

logger = logging.getLogger(__name__)

EVERY_SECONDS = 60.0
# A link has the time at which its transaction began, and the commit may come minutes later.
_SETTLED = timedelta(minutes=10)
_QUERY_SECONDS = 600.0
_DAY = timedelta(days=1)
_SECRET_CHARACTERS_LEAST = 32


def signing_key(secret: str) -> Ed25519PrivateKey:
    """The signing key derived from the setting. Raises ValueError for a secret that is too short."""
    if len(secret) < _SECRET_CHARACTERS_LEAST:
        raise ValueError(f"a ledger key has at least {_SECRET_CHARACTERS_LEAST} random characters")
    return Ed25519PrivateKey.from_private_bytes(sha256(b"uplion ledger key\0" + secret.encode()).digest())


class RootSigner:
    """Signs and stores roots; safe in several processes at once, since a day has one row."""

    def __init__(self, pool: "Pool", key: Ed25519PrivateKey) -> None:
        self._pool = pool
        self._key = key
        self._public_key = key.public_key().public_bytes_raw()
        self._key_id = merkle.key_id(self._public_key)

    async def sign(self, now: datetime | None = None) -> list[date]:
        """Signs every past day without a root; returns those days."""
        now = now or datetime.now(UTC)
        await self._pool.execute(
            "INSERT INTO ledger_keys (key_id, public_key) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            self._key_id,
            self._public_key,
        )
        last = await self._pool.fetchrow("SELECT day, root FROM ledger_roots ORDER BY day DESC LIMIT 1")
        if last is None:
            first = await self._pool.fetchval("SELECT min(record_time) FROM ledger_chain", timeout=_QUERY_SECONDS)
            if first is None:
                return []
            day, previous = first.astimezone(UTC).date(), FIRST_PREVIOUS
        else:
            day, previous = last["day"] + _DAY, last["root"]
        signed = []
        while now >= _end(day) + _SETTLED:
            previous = await self._sign(day, previous)
            signed.append(day)
            day += _DAY
        return signed

    async def _sign(self, day: date, previous: bytes) -> bytes:
        rows = await self._pool.fetch(HEADS, _end(day), timeout=_QUERY_SECONDS)
        value = await asyncio.to_thread(_root, [Head(*row) for row in rows])
        signature = self._key.sign(merkle.message(day, len(rows), value, previous))
        await self._pool.execute(
            "INSERT INTO ledger_roots (day, root, accounts, previous, signature, key_id)"
            " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
            day,
            value,
            len(rows),
            previous,
            signature,
            self._key_id,
        )
        logger.info("ledger root signed", extra={"day": str(day), "root": value.hex(), "accounts": len(rows)})
        return value


def _root(heads: Sequence[Head]) -> bytes:
    return merkle.root([merkle.leaf(head) for head in heads])


def _end(day: date) -> datetime:
    return datetime.combine(day + _DAY, time(), UTC)
