"""What becomes of an event's bytes."""

from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from uplion.billing.v1.usage_event_pb2 import AttemptStatus, UsageEvent

from billing.entry import Entry, MalformedEventError, decode

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()


def event(**fields):
    return UsageEvent(
        request_id="r",
        attempt=1,
        account="a",
        key="k",
        model="m",
        status=AttemptStatus.ATTEMPT_STATUS_COMPLETED,
        end_time=Timestamp(seconds=int(NOW), nanos=123_456_789),
        **fields,
    )


def read(made):
    return decode(made.SerializeToString(), NOW)


def test_unset_stays_unknown_and_zero_stays_zero():
    plain = read(event())
    assert (plain.queue_seconds, plain.first_token_seconds, plain.duration_seconds) == (None, None, None)
    zero = event()
    zero.queue_duration.FromNanoseconds(0)
    assert read(zero).queue_seconds == 0.0


def test_a_negative_duration_is_a_clock_set_back():
    made = event()
    made.duration.FromNanoseconds(-5)
    assert read(made).duration_seconds == 0.0


def test_times_are_exact_to_the_microsecond_and_filed_under_the_tickets_month():
    made = event(ticket_time=Timestamp(seconds=int(datetime(2026, 10, 31, 23, 59, 59, tzinfo=UTC).timestamp())))
    entry = read(made)
    assert entry.end_time == datetime(2026, 11, 21, 12, 0, 0, 123_456, tzinfo=UTC)
    assert entry.month == "2026-10-01"
    assert read(event()).month == "2026-11-01"


def test_names_of_states_are_the_contracts():
    assert read(event(finish_reason=2)).finish_reason == "length"
    assert read(event(finish_reason=77)).finish_reason == "77"
    assert read(event()).finish_reason == ""
    assert {decode_status(number) for number in range(1, 7)} == {
        "completed",
        "cancelled",
        "refused",
        "timed_out",
        "failed",
        "worker_lost",
    }


def decode_status(number):
    made = event()
    made.status = number
    return read(made).status


@pytest.mark.parametrize("seconds", [0, int(NOW) + 90_000, -(1 << 62), 1 << 62])
@pytest.mark.parametrize("field", ["end_time", "ticket_time"])
def test_an_impossible_time_is_malformed(field, seconds):
    made = event()
    getattr(made, field).seconds = seconds
    getattr(made, field).SetInParent()
    with pytest.raises(MalformedEventError, match=field):
        read(made)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_entry_or_malformed(data):
    try:
        entry = decode(data, NOW)
    except MalformedEventError:
        return
    assert isinstance(entry, Entry)


@given(st.text(max_size=600), st.text(max_size=300))
def test_whatever_a_client_calls_a_model_the_database_can_hold_it(model, served):
    made = event(model_served=served)
    made.model = model
    entry = read(made)
    assert (entry.model + entry.model_served).isprintable()
    assert "\\" not in entry.model + entry.model_served
    assert max(len(entry.model), len(entry.model_served)) <= 256
