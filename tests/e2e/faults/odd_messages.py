"""Messages that no consumer can digest, or that make no sense, for every subject, bucket and stream."""

import time
from collections.abc import Iterator

from uplion.billing.v1 import usage_event_pb2
from uplion.billing.v1.usage_event_pb2 import UsageEvent
from uplion.dispatch.v1.ticket_pb2 import Offer, Ticket
from uplion.dispatch.v1.worker_state_pb2 import WorkerState

HIGHEST, LOWEST = (1 << 63) - 1, -(1 << 63)
YEAR_10000 = 253_402_300_800
DEEP = b"[" * 100_000
GARBAGE = {
    "nothing": b"",
    "a zero byte": b"\0",
    "random bytes": bytes(range(256)) * 4,
    "invalid UTF-8 in a text": b"\x0a\x03\xff\xfe\xfd",
    "half a message": b"\x0a\x7fabc",
    "JSON": b'{"request_id": "a", "tokens": NaN}',
    "JSON 100,000 deep": DEEP,
    "900 kB": b"\x0a" + b"\xff" * 900_000,
    "lines": b"PUB x 3\r\nabc\r\n" * 10,
}


def usage_events() -> Iterator[tuple[str, bytes]]:
    """Each with what is wrong."""
    yield from GARBAGE.items()
    yield "a ticket", ticket().SerializeToString()
    wrong: dict[str, dict[str, object]] = {
        "no request id": {"request_id": ""},
        "NUL in the request id": {"request_id": "a\0b"},
        "a request id of 500,000 characters": {"request_id": "x" * 500_000},
        "attempt 0": {"attempt": 0},
        "attempt 4294967295": {"attempt": (1 << 32) - 1},
        "no status": {"status": 0},
        "an unknown status": {"status": 99},
        "no account": {"account": ""},
        "no key": {"key": ""},
        "a backslash in the account": {"account": "a\\b"},
        "a tab in the reservation": {"reservation": "a\tb"},
        "a tier of 300 characters": {"tier": "t" * 300},
        "model revision 2^64 - 1": {"model_revision": (1 << 64) - 1},
    }
    for name, value in wrong.items():
        yield name, usage_event(**value).SerializeToString()
    for seconds in (LOWEST, -1, 0, 86_400, YEAR_10000, HIGHEST):
        event = usage_event()
        event.end_time.seconds = seconds
        yield f"ended at {seconds}", event.SerializeToString()
    for name in ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "cache_write_tokens"):
        event = usage_event()
        setattr(event.usage, name, (1 << 32) - 1)
        yield f"4294967295 {name}", event.SerializeToString()
    for name in ("duration", "queue_duration", "first_token_duration", "compute_duration"):
        event = usage_event()
        getattr(event, name).seconds = HIGHEST
        yield f"{name} of 2^63 s", event.SerializeToString()


def events_of_odd_tickets() -> list[UsageEvent]:
    """Good ones but for the time of their tickets, which dates nothing."""
    events = [usage_event() for _ in range(6)]
    for event, seconds in zip(events, (LOWEST, -1, 0, 86_400, YEAR_10000, HIGHEST), strict=True):
        event.ticket_time.seconds = seconds
    return events


_number = iter(range(1, 1 << 30))


def usage_event(**fields: object) -> UsageEvent:
    """A good one of an account that nobody has."""
    event = UsageEvent(
        request_id=f"odd-{next(_number)}",
        attempt=1,
        account="nobody",
        key="none",
        model="synthetic",
        status=usage_event_pb2.ATTEMPT_STATUS_COMPLETED,
        last=True,
    )
    event.end_time.GetCurrentTime()
    for name, value in fields.items():
        setattr(event, name, value)
    return event


def tickets() -> Iterator[tuple[str, bytes]]:
    """Each with what is wrong."""
    yield from ((name, data) for name, data in GARBAGE.items())
    yield "a usage event", usage_event().SerializeToString()
    wrong: dict[str, dict[str, object]] = {
        "no request id": {"request_id": ""},
        "NUL in the request id": {"request_id": "a\0b"},
        "a request id of 500,000 characters": {"request_id": "x" * 500_000},
        "attempt 0": {"attempt": 0},
        "attempt 4294967295": {"attempt": (1 << 32) - 1},
        "no reply subject": {"reply_subject": ""},
        "a reply subject with a space": {"reply_subject": "a b"},
        "a reply subject with a command": {"reply_subject": "x 3\r\nabc\r\nPUB y"},
        "a reply subject of 5,000 characters": {"reply_subject": "s" * 5000},
        "a lane of 1,000 characters": {"lane": "l" * 1000},
        "a model of 100,000 characters": {"model": "m" * 100_000},
    }
    for name, value in wrong.items():
        yield name, ticket(**value).SerializeToString()
    for seconds in (LOWEST, -1, YEAR_10000, HIGHEST):
        for name in ("deadline", "publish_time"):
            odd = ticket()
            getattr(odd, name).seconds = seconds
            yield f"{name} at {seconds}", odd.SerializeToString()
    odd = ticket()
    odd.caller.account = "a" * 100_000
    yield "an account of 100,000 characters", odd.SerializeToString()


def ticket(**fields: object) -> Ticket:
    """A good one, whose router is gone."""
    made = Ticket(request_id=f"odd-{next(_number)}", attempt=1, model="synthetic", reply_subject="offers.gone.1")
    made.caller.account, made.caller.key = "nobody", "none"
    made.publish_time.GetCurrentTime()
    made.deadline.FromSeconds(int(time.time()) + 60)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def worker_states() -> Iterator[bytes]:
    """Entries of KV `workers`."""
    yield from GARBAGE.values()
    yield WorkerState(worker_id="another", model="synthetic", address="127.0.0.1:1").SerializeToString()
    yield WorkerState(worker_id="odd", model="synthetic").SerializeToString()
    yield WorkerState(worker_id="odd", model="\0" * 300, address="\0", pid=(1 << 32) - 1).SerializeToString()
    yield (
        WorkerState(worker_id="odd", model="no such", address="a b").SerializeToString() + b"\x50\x63"
    )  # capability 99
    state = WorkerState(worker_id="odd", model="no such", address="x:y", cache_use=float("nan"))
    state.start_time.seconds = HIGHEST
    yield state.SerializeToString()


def manifests() -> Iterator[bytes]:
    """Entries of KV `models`."""
    yield from GARBAGE.values()
    yield b'{"apiVersion": 7}'
    yield b'{"a":' * 50_000
    yield (
        b'{"apiVersion":"model.youxam.com/v1alpha1","kind":"AIModel","metadata":{"name":"synthetic"},'
        b'"spec":{"type":"local","model":"x","engine":"synthetic","replicas":3}}'
    )


def offers() -> Iterator[bytes]:
    """To a router."""
    yield from GARBAGE.values()
    yield Offer(request_id="x" * 100_000, attempt=7, worker_id="\0", address="\0").SerializeToString()
    yield Offer(attempt=(1 << 32) - 1).SerializeToString()


CORE = {
    "authz.invalidate": [
        b"key:",
        b"account:",
        b":x",
        b"key:" + b"k" * 100_000,
        b"account:\0\r\n",
        b"prices",
        b"key:\xff",
    ],
    "authz.release": [b" ", b"a", b"a  b", b"x" * 100_000 + b" y", b"nobody " + b"r" * 100_000, b"\0 \0", b"{a} }b{"],
    "authz.since": [b"x"],
    "authz.used": [b"x " * 50_000, b"\xff" * 1000, b"k" * 100_000, b"'; DROP TABLE keys; --"],
    "billing.reconcile": [b"x"],
}
