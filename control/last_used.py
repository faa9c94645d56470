"""Writes when keys were last used, in batches: authz publishes their ids about once a minute."""

import asyncio
from datetime import UTC, datetime

from nats.aio.subscription import Subscription

from common import names
from common.lifecycle import not_cancelled
from control.stores.keys import KeyStore
from messaging.bus import Bus
from messaging.connection import poison

_QUEUE = "control"  # queue group: one of several control processes gets each message
_WAIT_SECONDS = 30.0
_GATHER_SECONDS = 0.5
_MOST = 10_000
_ID_CHARACTERS = 200
_poison = poison(names.SUBJECT_LAST_USED)


async def record_last_used(bus: Bus, store: KeyStore) -> None:
    """Runs until cancelled. Core NATS: a lost message is repeated the next time the key is used."""
    async with bus.subscribed(names.SUBJECT_LAST_USED, queue=_QUEUE) as subscription:
        while not_cancelled():
            used = await _gathered(subscription)
            with _poison:
                if used:
                    await store.used(sorted(used), datetime.now(UTC))


async def _gathered(subscription: Subscription) -> set[str]:
    """The ids of the next message and of those soon after it; none when no message comes within _WAIT_SECONDS."""
    loop = asyncio.get_running_loop()
    used: set[str] = set()
    wait_seconds, end = _WAIT_SECONDS, float("inf")
    while len(used) < _MOST and wait_seconds > 0:
        try:
            message = await subscription.next_msg(timeout=wait_seconds)
        except TimeoutError:
            break
        ids = message.data.decode("ascii", "replace").split()
        used.update(each for each in ids if each.isalnum() and len(each) <= _ID_CHARACTERS)
        end = min(end, loop.time() + _GATHER_SECONDS)
        wait_seconds = end - loop.time()
    return used
