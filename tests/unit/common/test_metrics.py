"""Each process exports the metrics of what it runs, and no others; and no value ends what is measured."""

import subprocess
import sys
from decimal import Decimal

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from common import metrics
from common.metrics import METRICS_REFUSED, Counter, Gauge, Histogram

_LIST_FAMILIES = """
import importlib, sys
from prometheus_client import REGISTRY
importlib.import_module(sys.argv[1])
print("\\n".join(family.name for family in REGISTRY.collect()))
"""
_OF_PYTHON = ("process_", "python_")


@pytest.mark.parametrize(
    ("service", "prefixes"),
    [
        ("authz", {"uplion_authz_"}),
        ("billing", {"uplion_billing_"}),
        ("control", {"uplion_rpc_"}),
        ("fleet", set()),
        ("inference", {"uplion_inference_", "vllm:", "uplion_usage_"}),
        ("router", {"uplion_router_", "gen_ai_server_", "uplion_usage_", "uplion_rpc_"}),
    ],
)
def test_a_service_exports_no_metric_of_another(service: str, prefixes: set[str]) -> None:
    listed = subprocess.run(
        [sys.executable, "-c", _LIST_FAMILIES, f"{service}.app"], capture_output=True, text=True, check=True, timeout=60
    )
    every = {metric._name for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)}
    families = {name for name in listed.stdout.split() if not name.startswith(_OF_PYTHON)} - every
    strays = {name for name in families if not name.startswith(tuple(prefixes))}
    assert not strays
    assert {prefix for prefix in prefixes if any(name.startswith(prefix) for name in families)} == prefixes


ODD: list[object] = [
    -1,
    -0.5,
    float("nan"),
    float("inf"),
    float("-inf"),
    10**400,
    -(10**400),
    2.0**70,
    None,
    "seven",
    b"7",
    [7],
]
ODD += [Decimal("NaN"), Decimal("sNaN"), Decimal("-1e400"), 1j]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_no_value_breaks_a_metric(value) -> None:
    registry = CollectorRegistry()
    counter = Counter("odd_counter", "", registry=registry)
    histogram = Histogram("odd_histogram", "", registry=registry)
    gauge = Gauge("odd_gauge", "", registry=registry)
    counter.inc(3)
    histogram.observe(0.5)
    counter.inc(value)
    histogram.observe(value)
    gauge.set(value)
    gauge.set(5)
    assert registry.get_sample_value("odd_counter_total") == 3
    assert registry.get_sample_value("odd_histogram_sum") == 0.5
    assert registry.get_sample_value("odd_gauge") == 5
    refused = METRICS_REFUSED.labels("odd_counter")._value.get()
    assert refused >= 1


@pytest.mark.parametrize("label", ["\ud800", "\0", 'a"b\n', "x" * 100_000, None, 7, b"\xff"], ids=repr)
def test_no_label_breaks_the_page(label) -> None:
    registry = CollectorRegistry()
    Counter("odd_label", "", ["model"], registry=registry).labels(label).inc()
    assert generate_latest(registry).decode().count("odd_label_total{") == 1


def test_labels_of_another_metric_count_for_nobody() -> None:
    registry = CollectorRegistry()
    counter = Counter("two_labels", "", ["model", "status"], registry=registry)
    counter.labels("one").inc()
    counter.labels(model="a", state="b").inc()
    assert "two_labels_total{" not in generate_latest(registry).decode()
