"""The stream as a witness: every event that billing acknowledged must be in the ledger once, or among the dead."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import nats.errors
from google.protobuf.message import DecodeError
from nats.js import api
from uplion.billing.v1.usage_event_pb2 import UsageEvent

from billing.comparing import Difference
from common import names
from messaging.bus import Bus
from messaging.pull import Message, Pull

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

_BATCH = 2_000
_SILENCE_SECONDS = 10.0  # a stream that sends nothing for so long is not there
_IDLE_CONSUMER_SECONDS = 60.0
# Each is one look into the key's index, a month at a time.
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
class Testimony:
    """What the stream says."""

    events: int = 0  # looked up
    sequence: int = 0  # up to which each event is in the ledger
    pending: int = 0  # not acknowledged yet
    differences: list[Difference] = field(default_factory=list)


async def ask(bus: Bus, pool: "Pool", after: int, most: int | None) -> Testimony:
    """Looks up the acknowledged events behind message `after`, at most so many. Raises what NATS and Postgres raise."""
    stream = (await bus.js.stream_info(names.STREAM_USAGE)).state
    consumer = await bus.js.consumer_info(names.STREAM_USAGE, names.CONSUMER_BILLING)
    floor = consumer.ack_floor.stream_seq if consumer.ack_floor else 0
    if after > stream.last_seq:  # another stream than the one that was asked last time
        after = 0
    said = Testimony(sequence=after, pending=(consumer.num_pending or 0) + (consumer.num_ack_pending or 0))
    dead = await bus.js.stream_info(names.STREAM_DEAD, subjects_filter=names.dead_subject(names.STREAM_USAGE))
    count = sum((dead.state.subjects or {}).values())
    if count:
        said.differences.append(Difference("dead", names.dead_subject(names.STREAM_USAGE), "0", str(count)))
    first = max(after + 1, stream.first_seq or 1)
    last = floor if most is None else min(floor, first + most - 1)
    if first <= last:
        await _look_up(bus, pool, first, last, said, dead=count > 0)
    return said


async def _look_up(bus: Bus, pool: "Pool", first: int, last: int, said: Testimony, *, dead: bool) -> None:
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
        await _read(bus, pool, consumer.name, first, last, said, dead=dead)
    finally:
        with suppress(nats.errors.Error, TimeoutError):
            await bus.js.delete_consumer(names.STREAM_USAGE, consumer.name)


async def _read(bus: Bus, pool: "Pool", consumer: str, first: int, last: int, said: Testimony, *, dead: bool) -> None:
    buried = await _buried(bus) if dead else frozenset()
    wrong_at: int | None = None
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
            said.events += len(batch)
            for row in await pool.fetch(_NOT_ONCE, *zip(*batch, strict=True)) if batch else ():
                number = batch[row["request_id"], row["attempt"]]
                if row["rows"] or number not in buried:
                    wrong_at = min(number, wrong_at or number)
                    check = "double" if row["rows"] else "lost"
                    subject = f"{names.attempt_id(row['request_id'], row['attempt'])} (message {number} of USAGE)"
                    said.differences.append(Difference(check, subject, "1 row", f"{row['rows']} rows"))
            await asyncio.sleep(0)
    said.sequence = last if wrong_at is None else wrong_at - 1


def _key(message: Message) -> tuple[str, int] | None:
    """None for what is no event: billing has buried it."""
    try:
        event = UsageEvent.FromString(message.data)
    except DecodeError:
        return None
    return (event.request_id, event.attempt) if event.request_id and 0 < event.attempt < 1 << 31 else None


async def _buried(bus: Bus) -> frozenset[int]:
    """The numbers, in USAGE, of what lies in DEAD."""
    found: set[int] = set()
    subject = names.dead_subject(names.STREAM_USAGE)
    subscription = await bus.js.subscribe(subject, stream=names.STREAM_DEAD, ordered_consumer=True)
    try:
        info = await bus.js.stream_info(names.STREAM_DEAD, subjects_filter=subject)
        for _ in range(sum((info.state.subjects or {}).values())):
            message = await subscription.next_msg(_SILENCE_SECONDS)
            found.add(int((message.headers or {}).get(names.HEADER_DEAD_SEQUENCE, "0")))
    finally:
        await subscription.unsubscribe()
    return frozenset(found)
