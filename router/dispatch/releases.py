"""Releases: messages to authz that a request is over, so that its slot in a limit of concurrency is free."""

import logging

import nats.errors
from nats.aio.client import Client

from common import names
from common.identity import Identity
from messaging import nats_protocol

logger = logging.getLogger(__name__)


class Releases:
    """Publishes them."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def ended(self, identity: Identity) -> None:
        """The request is over, however it ended. Without the message, settling the reservation frees the slot."""
        if not identity.holds_slot:
            return
        try:
            nats_protocol.send(
                self._client, names.SUBJECT_RELEASE, f"{identity.account} {identity.reservation}".encode(), now=False
            )
        except nats.errors.Error as problem:
            logger.warning("a slot's release was not sent", extra={"problem": repr(problem)})
