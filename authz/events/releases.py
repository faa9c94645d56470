"""Slots that ended requests release: the router publishes them on NATS, one authz receives each and frees it in Valkey.

Core NATS keeps no messages: a slot whose release was lost is freed when billing settles the request.
"""

import asyncio

from nats.aio.msg import Msg

from authz.limits.counter_writes import CounterWrites
from common import names
from messaging.bus import Bus

_QUEUE = "authz"


async def follow_releases(bus: Bus, counter_writes: CounterWrites, ready: asyncio.Event) -> None:
    """Runs until cancelled."""

    async def on_message(message: Msg) -> None:
        account, _, reservation = message.data.decode("utf-8", "replace").partition(" ")
        if account and reservation:
            counter_writes.free_slot(account, reservation)

    await bus.subscribe(names.SUBJECT_RELEASE, queue=_QUEUE, cb=on_message)
    ready.set()
    await asyncio.Event().wait()
