"""Ends of requests that were counted as one of so many at once: authz hears of each, so that its slot is free."""

import logging

import nats.errors
from nats.aio.client import Client

from common import names
from common.identity import Identity
from messaging import nats_protocol

logger = logging.getLogger(__name__)


class Releases:
    """Announces ends."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def ended(self, identity: Identity) -> None:
        """The request is over, however it ended. Not told, its slot is freed by its reservation's settlement."""
        if not identity.holds_slot:
            return
        try:
            nats_protocol.send(
                self._client, names.SUBJECT_RELEASE, f"{identity.account} {identity.reservation}".encode(), now=False
            )
        except nats.errors.Error as problem:
            logger.warning("a slot's release was not sent", extra={"problem": repr(problem)})
