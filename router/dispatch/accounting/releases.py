"""Releases: messages to authz that a request is over, so that its slot in a limit of concurrency is free.

The slot is free before the client has the end of its answer: it may call again at once, and must not be refused for a
call that has ended.
"""

import asyncio
import logging

import nats.errors

from common import names
from common.lifecycle import not_cancelled
from messaging.connection import Send
from messaging.inbox import Inbox
from messaging.pull import Message
from router.dispatch.records import Record

logger = logging.getLogger(__name__)
_ANSWER_SECONDS = 0.5  # without authz, Valkey or NATS the end of an answer is late by this
_EVERY_SECONDS = 0.05
_PER_MESSAGE = 500  # of about 60 bytes


class Releases:
    """Publishes one for each request that holds a slot; `run` is the one task that sends those that nothing waits for.

    They go together: a message for each would cost a caller of many short requests more than its limit protects.
    """

    def __init__(self, send: Send, inbox: Inbox) -> None:
        self._send = send
        self._inbox = inbox
        self._ended: list[str] = []

    async def run(self) -> None:
        """Publishes until cancelled, and then what is left."""
        try:
            while not_cancelled():
                await asyncio.sleep(_EVERY_SECONDS)
                self._publish_ended()
        finally:
            self._publish_ended()

    async def freed(self, record: Record) -> None:
        """The request is about to end: returns when its slot is free, or cannot be freed now. Idempotent.

        While the caller has many slots left nothing is waited for.
        """
        if not record.identity.slots_scarce:
            self.ended(record)
            return
        if record.released:
            return
        record.released = True
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_answer(_: Message) -> None:
            if not done.done():
                done.set_result(None)

        subject = self._inbox.expect(on_answer)
        try:
            if self._publish(_release(record), subject):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await done
        except TimeoutError:
            logger.info("a slot was not freed in time")
        finally:
            self._inbox.forget(subject)

    def ended(self, record: Record) -> None:
        """The request is over, however it ended. Without the message, settling the reservation frees the slot."""
        if record.released or not record.identity.holds_slot:
            return
        record.released = True
        if record.identity.slots_scarce:
            self._publish(_release(record), "")
        else:
            self._ended.append(_release(record))

    def _publish_ended(self) -> None:
        ended, self._ended = self._ended, []
        for start in range(0, len(ended), _PER_MESSAGE):
            self._publish("\n".join(ended[start : start + _PER_MESSAGE]), "")

    def _publish(self, releases: str, reply: str) -> bool:
        try:
            self._send(names.SUBJECT_RELEASE, releases.encode(), reply)
        except nats.errors.Error as problem:
            logger.warning("the release of a slot was not sent", extra={"problem": repr(problem)})
            return False
        return True


def _release(record: Record) -> str:
    return f"{record.identity.account} {record.identity.reservation}"
