"""Telling every authz that a key or account changed, so that its cache forgets it within milliseconds."""

import logging

import nats.errors

from common import names
from messaging.bus import Bus

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 1


class Invalidations:
    """Core NATS: authz that hears nothing still forgets within its cache time (60 s)."""

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
        """Returns once the server has it. The change itself stands, so a broker that is away is no failure: the client
        keeps the message and sends it when it is back."""
        try:
            await self._bus.publish_core(names.SUBJECT_INVALIDATE, payload.encode())
            await self._bus.flush(_FLUSH_SECONDS)
        except (nats.errors.Error, TimeoutError) as problem:
            logger.warning("invalidation is late", extra={"problem": repr(problem)})
