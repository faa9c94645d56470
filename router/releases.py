"""Ends of requests that were counted as one of so many at once: authz hears of each, so that its slot is free."""

import asyncio
import logging
from collections import deque
from typing import Protocol

import nats.errors

from common import names
from common.identity import Identity

logger = logging.getLogger(__name__)

_HELD_MOST = 100_000  # while NATS is away; a slot that nobody frees is freed by its reservation's settlement


class Publishing(Protocol):
    """What this needs of NATS."""

    async def publish(self, subject: str, payload: bytes = ...) -> None:
        """Core NATS: returns once it is buffered."""


class Releases:
    """Announces ends; `run` is its one task."""

    def __init__(self, client: Publishing) -> None:
        self._client = client
        self._ended: deque[bytes] = deque(maxlen=_HELD_MOST)
        self._more = asyncio.Event()

    def ended(self, identity: Identity) -> None:
        """The request is over, however it ended; returns at once."""
        if identity.holds_slot:
            self._ended.append(f"{identity.account} {identity.reservation}".encode())
            self._more.set()

    async def run(self) -> None:
        """Publishes for ever."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._ended:
                try:
                    await self._client.publish(names.SUBJECT_RELEASE, self._ended.popleft())
                except (nats.errors.Error, ConnectionError) as problem:
                    logger.warning("a slot's release was not sent", extra={"problem": repr(problem)})
