"""Releases: messages to authz that a request is over, so that its slot in a limit of concurrency is free.

The slot is free before the client has the end of its answer: it may call again at once, and must not be refused for a
call that has ended.
"""

import asyncio
import logging

import nats.errors

from common import names
from messaging.connection import Send
from messaging.inbox import Inbox
from messaging.pull import Message
from router.dispatch.records import Record

logger = logging.getLogger(__name__)
_ANSWER_SECONDS = 0.5  # without authz, Valkey or NATS the end of an answer is late by this


class Releases:
    """Publishes them, one for each request that holds a slot."""

    def __init__(self, send: Send, inbox: Inbox) -> None:
        self._send = send
        self._inbox = inbox

    async def freed(self, record: Record) -> None:
        """The request is about to end: returns when its slot is free, or cannot be freed now. Idempotent.

        While the caller has many slots left nothing is waited for: that would cost each request a round trip.
        """
        if not record.identity.slots_scarce:
            self.ended(record)
            return
        if record.released:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_answer(_: Message) -> None:
            if not done.done():
                done.set_result(None)

        subject = self._inbox.expect(on_answer)
        try:
            if self._publish(record, subject):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await done
        except TimeoutError:
            logger.info("a slot was not freed in time")
        finally:
            self._inbox.forget(subject)

    def ended(self, record: Record) -> None:
        """The request is over, however it ended. Without the message, settling the reservation frees the slot."""
        if not record.released and record.identity.holds_slot:
            self._publish(record, "")

    def _publish(self, record: Record, reply: str) -> bool:
        record.released = True
        identity = record.identity
        try:
            self._send(names.SUBJECT_RELEASE, f"{identity.account} {identity.reservation}".encode(), reply)
        except nats.errors.Error as problem:
            logger.warning("a slot's release was not sent", extra={"problem": repr(problem)})
            return False
        return True
