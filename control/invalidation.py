"""Publishes cache invalidations: every authz drops a changed key or account from its cache within milliseconds."""

import logging

import nats.errors

from common import names
from messaging.bus import Bus

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 1


class Invalidations:
    """Published on core NATS; an authz that misses one drops the entry when its cache time ends (60 s)."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def key(self, identifier: str) -> None:
        """A key changed."""
        await self._publish(f"key:{identifier}")

    async def account(self, identifier: str) -> None:
        """An account changed."""
        await self._publish(f"account:{identifier}")

    async def prices(self) -> None:
        """A price was added: what a request may cost must be estimated anew."""
        await self._publish("prices:")

    async def _publish(self, payload: str) -> None:
        """Returns when the server has the message. The change itself is committed, so an unreachable broker is not an
        error: the client buffers the message and sends it after reconnecting."""
        try:
            await self._bus.publish_core(names.SUBJECT_INVALIDATE, payload.encode())
            await self._bus.flush(_FLUSH_SECONDS)
        except (nats.errors.Error, TimeoutError) as problem:
            logger.warning("invalidation is late", extra={"problem": repr(problem)})
