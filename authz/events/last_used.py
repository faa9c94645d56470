"""The ids of keys that were used: collected, and published to control once a minute, off the path of requests."""

import asyncio
import logging

import nats.errors

from common import names
from common.lifecycle import not_cancelled
from messaging.bus import Bus

logger = logging.getLogger(__name__)
_EVERY_SECONDS = 60.0
_PER_MESSAGE = 2000  # of 12 characters each


class LastUsed:
    """The ids of keys used since the last message; `run` is its one task."""

    def __init__(self, bus: Bus, every_seconds: float = _EVERY_SECONDS) -> None:
        self._bus = bus
        self._every_seconds = every_seconds
        self._ids: set[str] = set()

    def add(self, key_id: str) -> None:
        self._ids.add(key_id)

    async def run(self) -> None:
        """Publishes until cancelled, and once more then."""
        try:
            while not_cancelled():
                await asyncio.sleep(self._every_seconds)
                await self._publish()
        finally:
            await self._publish()

    async def _publish(self) -> None:
        ids, self._ids = sorted(self._ids), set()
        try:
            for start in range(0, len(ids), _PER_MESSAGE):
                await self._bus.publish_core(
                    names.SUBJECT_LAST_USED, " ".join(ids[start : start + _PER_MESSAGE]).encode()
                )
        except (nats.errors.Error, ConnectionError) as problem:
            logger.debug("used keys were not published", extra={"problem": repr(problem)})
