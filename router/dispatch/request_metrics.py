"""Metrics of ended requests. A labelled metric is looked up once for each set of labels, not once for each request."""

from dataclasses import dataclass

from common.metrics import Counter, Histogram
from router import metrics
from router.dispatch.records import Record


@dataclass(frozen=True, slots=True)
class _Timings:
    duration: Histogram
    first_token: Histogram
    queue: Histogram


class RequestMetrics:
    """Updates the metrics at a request's end."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, str, str, str], Counter] = {}
        self._timings: dict[tuple[str, str], _Timings] = {}

    def observe(self, record: Record, status: str) -> None:
        """Labels are bounded: `record.model` is a model that exists, or empty."""
        operation, model = record.capability.value, record.model
        labels = (record.surface, operation, model, status)
        counter = self._counters.get(labels)
        if counter is None:
            counter = self._counters[labels] = metrics.ROUTER_REQUESTS.labels(*labels)
        counter.inc()
        timings = self._timings.get((operation, model))
        if timings is None:
            timings = self._timings[operation, model] = _Timings(
                duration=metrics.ROUTER_DURATION.labels(operation, model),
                first_token=metrics.ROUTER_FIRST_TOKEN.labels(operation, model),
                queue=metrics.ROUTER_QUEUE.labels(model),
            )
        timings.duration.observe(record.seconds)
        if (queued := record.queue_seconds) is not None:
            timings.queue.observe(queued)
        if (first := record.first_token_seconds) is not None:
            timings.first_token.observe(first)
