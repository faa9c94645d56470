"""Cache invalidations from NATS: a key or an account whose records changed, and new prices."""

import asyncio
import contextlib
import logging

from authz.credentials.key_ring import KeyRing
from common import names
from common.lifecycle import not_cancelled
from messaging.bus import Bus
from messaging.connection import poison

logger = logging.getLogger(__name__)
_POLL_SECONDS = 1.0
_ID_CHARACTERS = 200
_poison = poison(names.SUBJECT_INVALIDATE)


async def follow_invalidations(bus: Bus, keys: KeyRing, prices: asyncio.Event, ready: asyncio.Event) -> None:
    """Runs until cancelled; sets `prices` when they changed.

    Core NATS keeps no messages: after a gap in the connection, or in this task, every cached record is invalid.
    """
    async with bus.subscribed(names.SUBJECT_INVALIDATE) as subscription:
        if ready.is_set():
            _forget_all(keys, prices)
        ready.set()
        seen = bus.reconnects
        while not_cancelled():
            message = None
            with contextlib.suppress(TimeoutError):
                message = await subscription.next_msg(timeout=_POLL_SECONDS)
            if bus.reconnects != seen:
                seen = bus.reconnects
                _forget_all(keys, prices)
            if message is not None:
                with _poison:
                    await _apply(message.data, keys, prices)


def _forget_all(keys: KeyRing, prices: asyncio.Event) -> None:
    keys.expire_all()
    prices.set()


async def _apply(data: bytes, keys: KeyRing, prices: asyncio.Event) -> None:
    kind, _, name = data.decode("utf-8", "replace").partition(":")
    if kind == "prices":
        prices.set()
    elif kind in {"key", "account"} and 0 < len(name) <= _ID_CHARACTERS:
        await keys.invalidate(kind, name)
        logger.info("keys invalidated", extra={"kind": kind})
    else:
        logger.warning("an invalidation is malformed", extra={"bytes": len(data)})
