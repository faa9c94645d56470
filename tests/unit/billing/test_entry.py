"""What becomes of an event's bytes."""

from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from uplion.billing.v1.usage_event_pb2 import AttemptStatus, UsageEvent

from billing.entry import Arrival, Entry, MalformedEventError, decode

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
ARRIVAL = Arrival(int(NOW) * 1_000_000_000, None)
SECOND = 1_000_000_000


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
    return decode(made.SerializeToString(), ARRIVAL)


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
def test_an_impossible_end_of_an_earlier_versions_event_is_malformed(seconds):
    made = event()
    made.end_time.seconds = seconds
    with pytest.raises(MalformedEventError, match="end_time"):
        read(made)


@pytest.mark.parametrize("seconds", [0, int(NOW) + 90_000, -(1 << 62), 1 << 62])
def test_an_event_whose_ticket_has_an_impossible_time_is_filed_under_its_end(seconds):
    made = event()
    made.ticket_time.seconds = seconds
    made.ticket_time.SetInParent()
    assert read(made).month == "2026-11-01"


@pytest.mark.parametrize("wrong_by_seconds", [0, 3600, -3600, 300, -300, 400 * 86_400, -20 * 365 * 86_400])
def test_the_ledger_is_dated_by_jetstreams_clock_whatever_its_publishers_says(wrong_by_seconds):
    """It ended 90 s before it was sent: it lay in a spool."""
    made = event()
    made.end_time.FromNanoseconds((int(NOW) + wrong_by_seconds - 90) * SECOND)
    arrival = Arrival(int(NOW) * SECOND, (int(NOW) + wrong_by_seconds) * SECOND)
    entry = decode(made.SerializeToString(), arrival)
    assert entry.end_time == datetime(2026, 11, 21, 11, 58, 30, tzinfo=UTC)


@pytest.mark.parametrize("set_by_seconds", [-3600, 400 * 86_400])
def test_a_publishers_clock_that_is_set_before_it_sends_does_not_put_an_event_elsewhere(set_by_seconds):
    made = event()
    made.end_time.FromNanoseconds(int(NOW) * SECOND)
    entry = decode(made.SerializeToString(), Arrival(int(NOW) * SECOND, (int(NOW) + set_by_seconds) * SECOND))
    assert entry.end_time == datetime(2026, 11, 21, 12, tzinfo=UTC)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_entry_or_malformed(data):
    try:
        entry = decode(data, ARRIVAL)
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
