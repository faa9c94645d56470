"""What tests ask of the USAGE stream."""

import nats.errors

from common import names
from messaging.bus import Bus


async def all_acknowledged(bus: Bus) -> bool:
    """Whether billing is done with every event that was published before.

    The consumer's `num_pending` alone does not say so: the server acknowledges a message before it counts it there.
    """
    try:
        last = (await bus.js.stream_info(names.STREAM_USAGE)).state.last_seq
        info = await bus.js.consumer_info(names.STREAM_USAGE, names.CONSUMER_BILLING)
    except (nats.errors.Error, TimeoutError):  # nobody is there yet, or a busy machine answers late
        return False
    delivered = info.delivered.stream_seq if info.delivered else 0
    return delivered >= last and not info.num_pending and not info.num_ack_pending
