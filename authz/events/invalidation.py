"""Cache invalidations from NATS: a key or an account whose records changed, and new prices."""

import asyncio
import contextlib
import logging

from authz.credentials.key_ring import KeyRing
from common import names
from common.lifecycle import not_cancelled
from messaging.bus import Bus

logger = logging.getLogger(__name__)
_POLL_SECONDS = 1.0


async def follow_invalidations(bus: Bus, keys: KeyRing, prices: asyncio.Event, ready: asyncio.Event) -> None:
    """Runs until cancelled; sets `prices` when they changed.

    Core NATS keeps no messages: after a gap in the connection every cached record is invalid.
    """
    subscription = await bus.subscribe(names.SUBJECT_INVALIDATE)
    ready.set()
    seen = bus.reconnects
    while not_cancelled():
        message = None
        with contextlib.suppress(TimeoutError):
            message = await subscription.next_msg(timeout=_POLL_SECONDS)
        if bus.reconnects != seen:
            seen = bus.reconnects
            keys.expire_all()
            prices.set()
        if message is None:
            continue
        kind, _, name = message.data.decode("utf-8", "replace").partition(":")
        if kind == "prices":
            prices.set()
            continue
        if kind not in {"key", "account"} or not name:
            logger.warning("an invalidation is malformed", extra={"bytes": len(message.data)})
            continue
        await keys.invalidate(kind, name)
        logger.info("keys invalidated", extra={"kind": kind})
