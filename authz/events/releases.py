"""Slots that ended requests release: the router publishes them on NATS, one authz receives each and frees it in Valkey.

Where few slots are left the router sends one alone, and waits for the answer before it ends its own: a caller who has
that finds the slot free. The others come many in a message. What an authz admitted without Valkey it frees itself.

Core NATS keeps no messages: a slot whose release was lost is freed when billing settles the request.
"""

import asyncio
import logging
from collections.abc import Iterator
from functools import partial

import nats.errors
from nats.aio.msg import Msg

from authz.limits.counter_writes import CounterWrites
from authz.limits.local_fallback import LocalFallback
from common import names
from messaging.bus import Bus

logger = logging.getLogger(__name__)
_QUEUE = "authz"
_ID_CHARACTERS = 200  # a longer one is none, and would only fill Valkey


async def follow_releases(
    bus: Bus, counter_writes: CounterWrites, local_fallback: LocalFallback, ready: asyncio.Event
) -> None:
    """Runs until cancelled."""

    async def on_message(message: Msg) -> None:
        answer = partial(_answer, bus, message.reply) if message.reply else None
        for account, reservation in _releases(message):
            counter_writes.free_slot(account, reservation, answer)

    async def on_any_message(message: Msg) -> None:
        if local_fallback.holds_slots:
            for _, reservation in _releases(message):
                local_fallback.free_slot(reservation)

    async with (
        bus.subscribed(names.SUBJECT_RELEASE, queue=_QUEUE, cb=on_message),
        bus.subscribed(names.SUBJECT_RELEASE, cb=on_any_message),
    ):
        ready.set()
        await asyncio.get_running_loop().create_future()


def _releases(message: Msg) -> Iterator[tuple[str, str]]:
    """The account and the reservation of each."""
    for line in message.data.decode("utf-8", "replace").split("\n"):
        account, _, reservation = line.partition(" ")
        if 0 < len(account) <= _ID_CHARACTERS and 0 < len(reservation) <= _ID_CHARACTERS:
            yield account, reservation


def _answer(bus: Bus, subject: str) -> None:
    try:
        bus.send(subject, b"")
    except nats.errors.Error as problem:
        logger.warning("a release was not answered", extra={"problem": repr(problem)})
