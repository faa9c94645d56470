"""The audit of the stream: every acknowledged usage event is in the ledger exactly once, or in the stream DEAD."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import nats.errors
from google.protobuf.message import DecodeError
from nats.js import api
from uplion.billing.v1.usage_event_pb2 import UsageEvent

from billing.entry import is_key
from billing.reconciliation.difference import Difference
from common import names
from messaging.bus import Bus
from messaging.pull import Message, Pull

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

_BATCH = 2_000
_SILENCE_SECONDS = 10.0  # without a message for so long, the stream counts as unavailable
_IDLE_CONSUMER_SECONDS = 60.0
# One index lookup for each event, in each monthly partition.
_NOT_ONCE = """
    SELECT request_id, attempt, rows
    FROM unnest($1::text[], $2::integer[]) AS event (request_id, attempt),
        LATERAL (
            SELECT count(*) AS rows FROM usage_events
            WHERE request_id = event.request_id AND attempt = event.attempt
        ) ledger
    WHERE rows <> 1
"""


@dataclass(slots=True)
class StreamAudit:
    """What one audit of the stream found."""

    events: int = 0  # looked up in the ledger
    sequence: int = 0  # up to this one every event is in the ledger
    pending: int = 0  # events that are not acknowledged yet
    differences: list[Difference] = field(default_factory=list)


async def audit_stream(bus: Bus, pool: "Pool", after: int, most: int | None) -> StreamAudit:
    """Looks up at most `most` acknowledged events after sequence `after`. Raises the errors of NATS and Postgres."""
    stream = (await bus.js.stream_info(names.STREAM_USAGE)).state
    consumer = await bus.js.consumer_info(names.STREAM_USAGE, names.CONSUMER_BILLING)
    floor = consumer.ack_floor.stream_seq if consumer.ack_floor else 0
    if after > stream.last_seq:  # the stream was created anew since the last audit
        after = 0
    audit = StreamAudit(sequence=after, pending=(consumer.num_pending or 0) + (consumer.num_ack_pending or 0))
    dead = await bus.js.stream_info(names.STREAM_DEAD, subjects_filter=names.dead_subject(names.STREAM_USAGE))
    count = sum((dead.state.subjects or {}).values())
    if count:
        audit.differences.append(Difference("dead", names.dead_subject(names.STREAM_USAGE), "0", str(count)))
    first = max(after + 1, stream.first_seq or 1)
    last = floor if most is None else min(floor, first + most - 1)
    if first <= last:
        await _look_up(bus, pool, first, last, audit, dead=count > 0)
    return audit


async def _look_up(bus: Bus, pool: "Pool", first: int, last: int, audit: StreamAudit, *, dead: bool) -> None:
    consumer = await bus.js.add_consumer(
        names.STREAM_USAGE,
        api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=first,
            ack_policy=api.AckPolicy.NONE,
            inactive_threshold=_IDLE_CONSUMER_SECONDS,
        ),
    )
    try:
        await _read(bus, pool, consumer.name, first, last, audit, dead=dead)
    finally:
        with suppress(nats.errors.Error, TimeoutError):
            await bus.js.delete_consumer(names.STREAM_USAGE, consumer.name)


async def _read(
    bus: Bus, pool: "Pool", consumer: str, first: int, last: int, audit: StreamAudit, *, dead: bool
) -> None:
    dead_sequences = await _dead_sequences(bus) if dead else frozenset()
    first_wrong: int | None = None
    sequence = first - 1
    async with Pull(bus, names.STREAM_USAGE, consumer) as pull:
        while sequence < last:
            await pull.want(_BATCH)
            messages = await pull.take(_BATCH, _SILENCE_SECONDS)
            if not messages:
                raise TimeoutError("the stream does not send its events")
            numbered = [(message.metadata.sequence.stream, message) for message in messages]
            sequence = numbered[-1][0]
            batch = {key: number for number, message in numbered if number <= last and (key := _key(message))}
            audit.events += len(batch)
            for row in await pool.fetch(_NOT_ONCE, *zip(*batch, strict=True)) if batch else ():
                number = batch[row["request_id"], row["attempt"]]
                if row["rows"] or number not in dead_sequences:
                    first_wrong = min(number, first_wrong or number)
                    check = "double" if row["rows"] else "lost"
                    subject = f"{names.attempt_id(row['request_id'], row['attempt'])} (message {number} of USAGE)"
                    audit.differences.append(Difference(check, subject, "1 row", f"{row['rows']} rows"))
            await asyncio.sleep(0)
    audit.sequence = last if first_wrong is None else first_wrong - 1


def _key(message: Message) -> tuple[str, int] | None:
    """None for a message that is no valid event: billing has moved it to DEAD."""
    try:
        event = UsageEvent.FromString(message.data)
    except DecodeError:
        return None
    return (event.request_id, event.attempt) if is_key(event.request_id, event.attempt) else None


async def _dead_sequences(bus: Bus) -> frozenset[int]:
    """The sequences that the messages in DEAD had in USAGE."""
    found: set[int] = set()
    subject = names.dead_subject(names.STREAM_USAGE)
    subscription = await bus.js.subscribe(subject, stream=names.STREAM_DEAD, ordered_consumer=True)
    try:
        info = await bus.js.stream_info(names.STREAM_DEAD, subjects_filter=subject)
        for _ in range(sum((info.state.subjects or {}).values())):
            message = await subscription.next_msg(_SILENCE_SECONDS)
            sequence = (message.headers or {}).get(names.HEADER_DEAD_SEQUENCE, "")
            if sequence.isdecimal():
                found.add(int(sequence))
    finally:
        await subscription.unsubscribe()
    return frozenset(found)
