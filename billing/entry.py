"""A ledger entry: one usage event, validated and converted to the types of the ledger's columns."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from uplion.billing.v1.usage_event_pb2 import AttemptStatus, UsageEvent
from uplion.inference.v1.sampling_pb2 import FinishReason

from ledger import usage_columns

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST_SECONDS = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp())  # before the platform existed: the clock is wrong
_DAY_SECONDS = 86_400
_CLOCK_SKEW_SECONDS = 86_400  # an event from further in the future would create partitions of future months
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


def decode(payload: bytes, now_seconds: float) -> Entry:
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
    end_time, has = event.end_time, event.HasField
    end_seconds = month_seconds = _plausible("end_time", end_time.seconds, now_seconds)
    if has("ticket_time"):
        month_seconds = _plausible("ticket_time", event.ticket_time.seconds, now_seconds)
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
        end_seconds * 1_000_000 + end_time.nanos // 1000,
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


def _plausible(field: str, seconds: int, now_seconds: float) -> int:
    if not _EARLIEST_SECONDS <= seconds <= now_seconds + _CLOCK_SKEW_SECONDS:
        raise MalformedEventError(f"{field} is unset, or no time at which this event can have happened")
    return seconds


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
