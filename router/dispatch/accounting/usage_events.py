"""Usage events as a router writes them: for attempts that no worker accounts for."""

import time

from uplion.billing.v1 import usage_event_pb2 as billing

from common.errors import Reason
from router.dispatch.accounting.attempts import Attempt
from router.dispatch.jobs import Delivery
from router.dispatch.records import Record

_STATUSES = {
    Reason.CANCELLED: billing.ATTEMPT_STATUS_CANCELLED,
    Reason.DEADLINE_EXCEEDED: billing.ATTEMPT_STATUS_TIMED_OUT,
    Reason.WORKER_LOST: billing.ATTEMPT_STATUS_WORKER_LOST,
    Reason.INTERNAL: billing.ATTEMPT_STATUS_FAILED,
    Reason.UPSTREAM_FAILED: billing.ATTEMPT_STATUS_FAILED,
}


def usage_event(
    record: Record, attempt: Attempt, reason: Reason | None, *, last: bool, delivered: bool = True
) -> billing.UsageEvent:
    """The event of an attempt that ended for a reason (None: well).

    A complete attempt counts what its worker counted (ADR 3). Any other counts the tokens that the client was given of
    it, none unless `delivered`; the prompt is counted once, by the attempt that completes, or by the `last` one.
    """
    identity = record.identity
    now = time.monotonic()
    ended = attempt.ended_at or now
    started = record.begun_at if attempt.published_at is None else attempt.published_at
    event = billing.UsageEvent(
        request_id=identity.request_id,
        attempt=attempt.number,
        account=identity.account,
        project=identity.project,
        key=identity.key,
        model=identity.model,
        lane=record.lane,
        tier=identity.tier,
        reservation=identity.reservation,
        operation=record.capability.value,
        last=last,
    )
    event.end_time.FromNanoseconds(time.time_ns() - int((now - ended) * 1e9))
    event.duration.FromNanoseconds(int((ended - started) * 1e9))
    if attempt.ticket_time_ns is not None:
        event.ticket_time.FromNanoseconds(attempt.ticket_time_ns)
    if (queued := attempt.queue_seconds) is not None:
        event.queue_duration.FromNanoseconds(int(queued * 1e9))
    cut = reason is not None and record.delivery is Delivery.STREAM and record.given_exactly
    if attempt.usage is not None and delivered:
        event.model_served = record.model
        event.usage.CopyFrom(attempt.usage)
        if cut:
            event.usage.output_tokens = min(attempt.usage.output_tokens, attempt.delivered_tokens)
        event.finish_reason = record.finish_reason
    elif attempt.delivered_tokens and delivered:
        event.model_served = record.model
        event.usage.output_tokens = attempt.delivered_tokens
        if last:
            event.usage.input_tokens = record.input_tokens
    if reason is None:
        event.status = billing.ATTEMPT_STATUS_COMPLETED
    else:
        event.error_reason = reason.name
        event.status = _STATUSES.get(reason, billing.ATTEMPT_STATUS_REFUSED)
    return event
