"""A ledger entry: one usage event, validated and converted to the types of the ledger's columns."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from uplion.billing.v1.usage_event_pb2 import AttemptStatus, UsageEvent
from uplion.inference.v1.sampling_pb2 import FinishReason

from common import names
from ledger import usage_columns
from messaging.pull import Message

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST_SECONDS = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp())  # before the platform existed: the clock is wrong
_DAY_SECONDS = 86_400
_CLOCK_SKEW_SECONDS = 86_400  # an event from further in the future would create partitions of future months
_OLDEST_NS = 90 * _DAY_SECONDS * 1_000_000_000  # in a spool; far longer than any outage
_SENT = names.HEADER_SENT.encode()
_NS_DIGITS = 20
_MODEL_CHARACTERS = 256
_ID_CHARACTERS = 200
_BIGINT = 1 << 63
_TOKENS = 10**9  # no request has more; what its tokens cost would be no mistake that a caller could pay
_DURATION_SECONDS = 366 * _DAY_SECONDS
_token_counts = attrgetter(*usage_columns.TOKEN_COLUMNS)  # of a TokenUsage, as a tuple

_STATUS = {number: name.removeprefix("ATTEMPT_STATUS_").lower() for name, number in AttemptStatus.items() if number}
_FINISH_REASON = {
    number: name.removeprefix("FINISH_REASON_").lower() if number else "" for name, number in FinishReason.items()
}


class MalformedEventError(ValueError):
    """The bytes are not a usage event that can be billed. The message gives the reason and nothing of the content."""


class Entry(NamedTuple):
    """An event as the ledger keeps it, without cost and link. No text holds a character that COPY would escape."""

    request_id: str
    attempt: int
    month: str  # its first day, such as 2026-11-01
    account: str
    project: str  # "" when the key has none
    key: str
    model: str
    model_served: str
    model_revision: int
    provider: str
    lane: str
    tier: str
    operation: str
    status: str
    finish_reason: str
    error_reason: str
    tokens: tuple[int, ...]  # by class, as in `usage_columns.TOKEN_CLASSES`
    compute_microseconds: int | None
    queue_seconds: float | None
    first_token_seconds: float | None
    duration_seconds: float | None
    end_microseconds: int  # since 1970
    last: bool
    reservation: str
    measured: bool  # the event has `usage`, if only zeros; without it, what was used is unknown

    @property
    def end_time(self) -> datetime:
        """When the attempt ended."""
        return EPOCH + timedelta(microseconds=self.end_microseconds)

    @property
    def by_worker(self) -> bool:
        """The publisher was a worker: a router, which publishes for lost workers, does not know the provider."""
        return bool(self.provider)


class Arrival(NamedTuple):
    """When the usage stream took an event, by JetStream's clock, which dates the ledger."""

    stream_time_ns: int
    sent_ns: int | None  # by the clock that wrote the event's end; None: its publisher is of an earlier version

    @classmethod
    def of(cls, message: Message) -> "Arrival":
        sent = message.header(_SENT)
        return cls(message.stream_time_ns, int(sent) if sent.isdigit() and len(sent) < _NS_DIGITS else None)


def decode(payload: bytes, arrival: Arrival) -> Entry:
    """Reads one event; raises MalformedEventError."""
    try:
        event = UsageEvent.FromString(payload)
    except DecodeError:
        raise MalformedEventError("not a UsageEvent") from None
    request_id, attempt, status = event.request_id, event.attempt, _STATUS.get(event.status)
    if not request_id:
        raise MalformedEventError("request_id is unset")
    if not 0 < attempt < 1 << 31:
        raise MalformedEventError("attempt is not from 1 to 2147483647")
    if status is None:
        raise MalformedEventError("status is unset or unknown")
    if not event.account or not event.key:
        raise MalformedEventError("account or key is unset")
    if event.model_revision >= _BIGINT:
        raise MalformedEventError("model_revision is too large")
    has = event.HasField
    end_microseconds = _end_microseconds(event, arrival)
    month_seconds = end_microseconds // 1_000_000
    if has("ticket_time") and _is_plausible(event.ticket_time.seconds, arrival):
        month_seconds = event.ticket_time.seconds
    entry = Entry(
        request_id,
        attempt,
        _month(month_seconds // _DAY_SECONDS),
        event.account,
        event.project,
        event.key,
        _clean(event.model),
        _clean(event.model_served),
        event.model_revision,
        event.provider,
        event.lane,
        event.tier,
        event.operation,
        status,
        _FINISH_REASON.get(event.finish_reason) or (str(event.finish_reason) if event.finish_reason else ""),
        event.error_reason,
        _token_counts(event.usage),
        _microseconds(event.compute_duration) if has("compute_duration") else None,
        _seconds(event.queue_duration) if has("queue_duration") else None,
        _seconds(event.first_token_duration) if has("first_token_duration") else None,
        _seconds(event.duration) if has("duration") else None,
        end_microseconds,
        event.last,
        event.reservation,
        has("usage"),
    )
    _check_texts(entry)
    if max(entry.tokens) > _TOKENS:
        raise MalformedEventError(f"more than {_TOKENS} tokens")
    return entry


def is_key(request_id: str, attempt: int) -> bool:
    """Whether the ledger can hold it as a key; what it cannot hold it was never asked to."""
    return 0 < len(request_id) <= _ID_CHARACTERS and request_id.isprintable() and 0 < attempt < 1 << 31


def _check_texts(entry: Entry) -> None:
    """Ids come from our own services: one that COPY or an index cannot hold is a bug, and must not stop the batch."""
    request_id, _, _, account, project, key, _, _, _, provider, lane, tier, operation, _, _, error_reason, *_ = entry
    texts = (request_id, account, project, key, provider, lane, tier, operation, error_reason, entry.reservation)
    joined = "".join(texts)
    if not joined.isprintable() or "\\" in joined:
        raise MalformedEventError("an id holds a backslash, or a character that cannot be printed")
    if len(joined) > _ID_CHARACTERS and max(map(len, texts)) > _ID_CHARACTERS:
        raise MalformedEventError(f"an id is longer than {_ID_CHARACTERS} characters")


def _clean(model: str) -> str:
    """A model's name may come from a client: it is truncated and sanitised, never a reason to lose the event."""
    if len(model) <= _MODEL_CHARACTERS and model.isprintable() and "\\" not in model:
        return model
    return "".join(each if each.isprintable() and each != "\\" else "\ufffd" for each in model[:_MODEL_CHARACTERS])


def _end_microseconds(event: UsageEvent, arrival: Arrival) -> int:
    """When the attempt ended, by JetStream's clock: as long before its arrival as its publisher says.

    Only durations are taken from the publisher's clock, so one that is wrong dates nothing wrongly. An impossible
    duration, from a clock that was set meanwhile, counts as none.
    """
    end_time, (stream_time_ns, sent_ns) = event.end_time, arrival
    end_ns = end_time.seconds * 1_000_000_000 + end_time.nanos
    if sent_ns is not None:
        age_ns = max(0, sent_ns - end_ns)
        return (stream_time_ns - (age_ns if age_ns < _OLDEST_NS else 0)) // 1000
    if not _is_plausible(end_time.seconds, arrival):
        raise MalformedEventError("end_time is unset, or no time at which this event can have happened")
    return end_ns // 1000


def _is_plausible(seconds: int, arrival: Arrival) -> bool:
    return _EARLIEST_SECONDS <= seconds <= arrival.stream_time_ns // 1_000_000_000 + _CLOCK_SKEW_SECONDS


def _seconds(duration: Duration) -> float:
    """Never negative, though a clock may be set back between two readings. (A call of `max` takes longer.)"""
    seconds = duration.seconds + duration.nanos / 1e9
    if seconds > _DURATION_SECONDS:
        raise MalformedEventError("a duration is longer than a year")
    return seconds if seconds > 0 else 0.0


def _microseconds(duration: Duration) -> int:
    microseconds = duration.seconds * 1_000_000 + duration.nanos // 1000
    if microseconds > _DURATION_SECONDS * 1_000_000:
        raise MalformedEventError("a duration is longer than a year")
    return microseconds if microseconds > 0 else 0


@lru_cache(maxsize=256)
def _month(day: int) -> str:
    return f"{EPOCH + timedelta(days=day):%Y-%m-01}"
