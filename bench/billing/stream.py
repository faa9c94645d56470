"""Usage events as workers publish them, put into the stream as fast as it takes them."""

import random
import time
from dataclasses import dataclass

from nats.js import api
from uplion.billing.v1.usage_event_pb2 import AttemptStatus, UsageEvent
from uplion.inference.v1.sampling_pb2 import FinishReason

from common import names
from messaging.bus import Bus

_ACKNOWLEDGED_EVERY = 2000  # the stream's own queue is bounded


@dataclass(frozen=True, slots=True)
class Shape:
    """Who the events are of; the first accounts, keys and models have most of them."""

    accounts: int
    keys: int  # of each account
    models: int


@dataclass(slots=True)
class Filled:
    """What is in the stream."""

    events: int
    event_bytes: int


async def fill(bus: Bus, count: int, shape: Shape, seed: int) -> Filled:
    """Publishes `count` different events."""
    draw = random.Random(seed)
    accounts = _skewed(draw, shape.accounts, count)
    keys = _skewed(draw, shape.keys, count)
    models = _skewed(draw, shape.models, count)
    event_bytes = 0
    now = time.time()
    for number in range(count):
        event = _event(draw, now, f"acc-{accounts[number]:04}", keys[number], f"model-{models[number]}")
        payload = event.SerializeToString()
        event_bytes += len(payload)
        subject = names.usage_subject(event.model_served)
        headers = {
            "traceparent": f"00-{draw.getrandbits(128):032x}-{draw.getrandbits(64):016x}-01",
            api.Header.MSG_ID: names.attempt_id(event.request_id, event.attempt),
        }
        if number % _ACKNOWLEDGED_EVERY == 0 or number == count - 1:
            await bus.js.publish(subject, payload, headers=headers, timeout=60)
        else:
            await bus.publish_core(subject, payload, headers=headers)
    stored = (await bus.js.stream_info(names.STREAM_USAGE)).state.messages
    if stored != count:
        raise RuntimeError(f"the stream took {stored} of {count} events")
    return Filled(count, event_bytes)


def _event(draw: random.Random, now: float, account: str, key: int, model: str) -> UsageEvent:
    bits = f"{draw.getrandbits(128):032x}"
    event = UsageEvent(
        request_id=f"{bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-{bits[20:]}",
        attempt=1,
        account=account,
        key=f"{account}-key{key:02}",
        project=f"{account}-p{key % 2}",
        model=model,
        model_served=model,
        model_revision=7,
        provider="transformers",
        lane="default",
        tier="default",
        status=AttemptStatus.ATTEMPT_STATUS_COMPLETED,
        finish_reason=FinishReason.FINISH_REASON_STOP,
        reservation=bits[:22],
        last=True,
        operation="chat",
    )
    event.usage.input_tokens, event.usage.output_tokens = draw.randrange(10, 4000), draw.randrange(1, 800)
    event.usage.cached_tokens = event.usage.input_tokens // 2
    ended = now - draw.random() * 3
    for stamp, seconds in ((event.end_time, ended), (event.ticket_time, ended - 2.5)):
        stamp.FromNanoseconds(int(seconds * 1e9))
    event.queue_duration.FromMicroseconds(draw.randrange(1, 50_000))
    event.first_token_duration.FromMicroseconds(draw.randrange(1, 500_000))
    event.duration.FromMicroseconds(2_500_000)
    event.compute_duration.FromMicroseconds(draw.randrange(1, 500_000))
    return event


def _skewed(draw: random.Random, kinds: int, count: int) -> list[int]:
    return draw.choices(range(kinds), weights=[1 / (rank + 1) for rank in range(kinds)], k=count)
