"""Counters, gauges and histograms that never raise, and the metrics of every process.

What they are given may come from an upstream, a client or a message. A number that cannot be counted (negative, NaN,
too large, no number at all) is left out and counted as refused, so that observing never ends what is observed.
"""

from typing import Self

import prometheus_client
from prometheus_client.metrics import MetricWrapperBase

_HIGHEST = 2.0**63  # beyond it a double no longer counts

METRICS_REFUSED = prometheus_client.Counter(
    "uplion_metrics_refused", "Values left out of a metric because it cannot hold them", ["metric"]
)


def _refused(name: str) -> None:
    METRICS_REFUSED.labels(name).inc()


def _holds(amount: float, least: float) -> bool:
    try:
        return least <= amount <= _HIGHEST and float(amount) == float(amount)
    except (TypeError, ValueError, ArithmeticError):
        return False


def _text(value: object) -> str:
    """A label that /metrics can hold: half a surrogate pair would end every later scrape."""
    return str(value).encode("utf-8", "replace").decode()


class _Labelled(MetricWrapperBase):
    """What the three have in common."""

    def labels(self, *labelvalues: object, **labelkwargs: object) -> Self:
        """The series with these labels; one that counts for nobody where they are not the metric's own."""
        try:
            return super().labels(*map(_text, labelvalues), **{name: _text(each) for name, each in labelkwargs.items()})
        except ValueError:
            _refused(self._name)
            return type(self)(self._name, self._documentation, registry=None)


class Counter(_Labelled, prometheus_client.Counter):
    """Only grows, by what is not negative."""

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        if _holds(amount, 0.0):
            super().inc(float(amount), exemplar)
        else:
            _refused(self._name)


class Gauge(_Labelled, prometheus_client.Gauge):
    """Goes up and down."""

    def inc(self, amount: float = 1) -> None:
        if _holds(amount, -_HIGHEST):
            super().inc(float(amount))
        else:
            _refused(self._name)

    def dec(self, amount: float = 1) -> None:
        if _holds(amount, -_HIGHEST):
            super().dec(float(amount))
        else:
            _refused(self._name)

    def set(self, value: float) -> None:
        if _holds(value, -_HIGHEST):
            super().set(float(value))
        else:
            _refused(self._name)


class Histogram(_Labelled, prometheus_client.Histogram):
    """Counts values by size; its sum must not shrink, so none is negative."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        if _holds(amount, 0.0):
            super().observe(float(amount), exemplar)
        else:
            _refused(self._name)


TASK_RESTARTS = Counter("uplion_task_restarts", "Tasks that failed and were started again, alone", ["task"])
SERVICE_RESTARTS = Counter("uplion_service_restarts", "Services that failed and were started again, alone", ["service"])
OBSERVATIONS_FAILED = Counter(
    "uplion_observations_failed",
    "Log lines, spans and reports that could not be made; what they tell of went on",
    ["what"],
)
MESSAGES_DROPPED = Counter(
    "uplion_messages_dropped", "Messages that could not be digested, by subject, bucket or stream", ["source"]
)
