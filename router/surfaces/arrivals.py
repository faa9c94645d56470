"""Arrivals: messages to authz that admitted requests have reached a router, which accounts for them from there on.

Core NATS keeps no messages. authz gives back what it reserved for a request that no router announces; where a message
was lost it does so too early, and the request's settlement then finds nothing to give back.
"""

import asyncio
import logging

import nats.errors

from common import names
from common.lifecycle import not_cancelled
from messaging.bus import Bus

logger = logging.getLogger(__name__)
_EVERY_SECONDS = 0.5
_PER_MESSAGE = 2000  # ids of about 25 bytes


class Arrivals:
    """The reservations whose requests came since the last message; `run` is the one task that publishes them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._reservations: list[str] = []

    def add(self, reservation: str) -> None:
        if reservation:
            self._reservations.append(reservation)

    async def run(self) -> None:
        """Publishes until cancelled, also when nothing came: then authz knows that nothing did."""
        while not_cancelled():
            came, self._reservations = self._reservations, []
            try:
                for start in range(0, len(came) or 1, _PER_MESSAGE):
                    part = came[start : start + _PER_MESSAGE]
                    await self._bus.publish_core(names.SUBJECT_ARRIVED, " ".join(part).encode())
            except (nats.errors.Error, ConnectionError) as problem:
                logger.warning("arrived requests were not announced", extra={"problem": repr(problem)})
            await asyncio.sleep(_EVERY_SECONDS)
