"""What of a run's use is published, by what its client was given."""

import pytest
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.dispatch.v1 import ticket_pb2
from uplion.dispatch.v1.ticket_pb2 import Receipt
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_STOP, TokenUsage

from inference.tickets.receipts import counted

COMPLETED, CANCELLED, FAILED = (
    billing.ATTEMPT_STATUS_COMPLETED,
    billing.ATTEMPT_STATUS_CANCELLED,
    billing.ATTEMPT_STATUS_FAILED,
)
ENDED = Receipt(state=ticket_pb2.RECEIPT_STATE_ENDED)
CUT = Receipt(state=ticket_pb2.RECEIPT_STATE_ENDED, output_tokens=4)
WHOLE = Receipt(state=ticket_pb2.RECEIPT_STATE_ENDED, output_tokens=10)
LATE = Receipt(state=ticket_pb2.RECEIPT_STATE_TIMED_OUT, output_tokens=4)
OPEN = Receipt(output_tokens=3)
OPEN_UNCOUNTED = Receipt()


def event(status: int = COMPLETED) -> billing.UsageEvent:
    found = billing.UsageEvent(usage=TokenUsage(input_tokens=7, output_tokens=10), last=True)
    found.status = status  # type: ignore[assignment]
    found.compute_duration.seconds = 1
    if status == COMPLETED:
        found.finish_reason = FINISH_REASON_STOP
    else:
        found.error_reason = "CANCELLED"
    return found


@pytest.mark.parametrize(
    ("measured", "receipt", "streamed", "status", "output"),
    [
        (COMPLETED, ENDED, False, COMPLETED, 10),
        (COMPLETED, ENDED, True, COMPLETED, 10),
        (COMPLETED, WHOLE, True, COMPLETED, 10),
        (COMPLETED, CUT, True, CANCELLED, 4),
        (CANCELLED, CUT, True, CANCELLED, 4),
        (CANCELLED, LATE, True, billing.ATTEMPT_STATUS_TIMED_OUT, 4),
        (CANCELLED, ENDED, False, CANCELLED, 10),
        (COMPLETED, OPEN, True, CANCELLED, 3),
        (CANCELLED, OPEN, True, CANCELLED, 3),
        (CANCELLED, OPEN_UNCOUNTED, True, CANCELLED, 10),
    ],
)
def test_what_the_client_was_given_counts(
    measured: int, receipt: Receipt, streamed: bool, status: int, output: int
) -> None:
    found = counted(event(measured), receipt, streamed=streamed)
    assert found is not None
    assert (found.status, found.usage.input_tokens, found.usage.output_tokens) == (status, 7, output)
    assert bool(found.error_reason) == (status != COMPLETED)


@pytest.mark.parametrize("measured", [COMPLETED, CANCELLED, billing.ATTEMPT_STATUS_TIMED_OUT])
@pytest.mark.parametrize(
    ("receipt", "streamed"),
    [(None, False), (None, True), (OPEN, False), (Receipt(state=ticket_pb2.RECEIPT_STATE_FAILED), True)],
)
def test_what_no_client_was_given_costs_nothing(measured: int, receipt: Receipt | None, streamed: bool) -> None:
    found = counted(event(measured), receipt, streamed=streamed)
    assert found is not None
    assert (found.status, found.last) == (FAILED, True)
    assert not found.HasField("usage")
    assert not found.HasField("compute_duration")


def test_what_the_router_accounts_for_is_not_published_by_the_worker() -> None:
    assert counted(event(), Receipt(state=ticket_pb2.RECEIPT_STATE_ACCOUNTED), streamed=True) is None
