"""Releases: messages to authz that a request is over, so that its slot in a limit of concurrency is free."""

import logging

import nats.errors

from common import names
from common.identity import Identity
from messaging.connection import Send

logger = logging.getLogger(__name__)


class Releases:
    """Publishes them."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def ended(self, identity: Identity) -> None:
        """The request is over, however it ended. Without the message, settling the reservation frees the slot."""
        if not identity.holds_slot:
            return
        try:
            self._send(names.SUBJECT_RELEASE, f"{identity.account} {identity.reservation}".encode(), now=False)
        except nats.errors.Error as problem:
            logger.warning("a slot's release was not sent", extra={"problem": repr(problem)})
