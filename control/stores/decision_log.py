"""authz's decision log in JetStream: the last decision against each request, kept for a week."""

import logging

import msgspec
import nats.errors
from nats.js.errors import NotFoundError

from common import names
from common.errors import Reason, UplionError
from messaging import decisions
from messaging.bus import Bus
from messaging.decisions import Decision

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0


class DecisionLog:
    """Reads single decisions by request id."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def of_request(self, request_id: str) -> Decision | None:
        """None when nothing was decided against it, or that cannot be read; UNAVAILABLE when the broker is away."""
        try:
            message = await self._bus.js.get_last_msg(names.STREAM_DECISIONS, names.decision_subject(request_id))
            return decisions.decode(message.data or b"")
        except NotFoundError:
            return None
        except msgspec.MsgspecError:
            logger.error("a decision cannot be read", extra={"explained_request_id": request_id})
            return None
        except (nats.errors.Error, TimeoutError) as problem:
            raise UplionError(
                Reason.UNAVAILABLE, "Decisions cannot be read now; try again.", retry_after_seconds=_RETRY_SECONDS
            ) from problem
