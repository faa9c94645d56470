"""Logs, metrics, trace context and spans of a process.

JSON lines on stdout; spans over OTLP only when an endpoint is set. Each service declares its metrics in its own
`metrics.py`, so that a process exports only what it can count. No account, key or request id is ever a label.
"""

import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# The request a task works on, and its W3C trace context; set once per call, read by logs and outgoing hops.
request_id: ContextVar[str] = ContextVar("request_id", default="")
traceparent: ContextVar[str] = ContextVar("traceparent", default="")

TRACEPARENT = "traceparent"  # the header's name, on HTTP, gRPC and NATS alike

# Bucket boundaries, in seconds, of every histogram of durations.
DURATIONS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

_W3C = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}").fullmatch

_provider: "TracerProvider | None" = None  # one per process, as OpenTelemetry has it
_PLAIN_FIELDS = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


# json.dumps would build an encoder each time. What is no JSON (NaN) is refused, else readers of the log would break.
_encode = json.JSONEncoder(default=str, ensure_ascii=False, allow_nan=False).encode


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, event, request and trace id, and the facts of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        if parent := traceparent.get():
            line["trace_id"] = parent[3:35]
        line.update({name: value for name, value in vars(record).items() if name not in _PLAIN_FIELDS})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        try:
            text = _encode(line)
        except Exception:  # an observer's boundary: a fact of strange shape costs the facts, never the caller
            from common.metrics import OBSERVATIONS_FAILED  # the commands do without it

            OBSERVATIONS_FAILED.labels("log").inc()
            text = _encode({"time": line["time"], "level": line["level"], "event": record.msg, "facts": "unwritable"})
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def configure_logging(level: str, file: Path | None = None) -> None:
    """Every logger of the process writes JSON lines to stdout, or to the end of a file, from now on."""
    handler = logging.StreamHandler(sys.stdout) if file is None else logging.FileHandler(file, delay=True)
    handler.setFormatter(_JsonFormatter())
    # No line of ours contains these, and finding them out is a tenth of a line's cost.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def serve_metrics(listen: str) -> None:
    """Serves every metric that the process has declared as GET /metrics on `host:port`, from a thread of its own."""
    from prometheus_client import start_http_server

    host, _, port = listen.rpartition(":")
    start_http_server(int(port), host)


def configure_tracing(services: str, endpoint: str) -> None:
    """Sends spans to an OTLP endpoint. OpenTelemetry is imported here only: it weighs 20 MB."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    global _provider
    _provider = TracerProvider(resource=Resource.create({"service.name": f"uplion-{services}"}))
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"), timeout=5)
    _provider.add_span_processor(BatchSpanProcessor(exporter))


def flush_tracing() -> None:
    """Sends what is left, within 5 s. Idempotent."""
    if _provider is not None:
        _provider.shutdown()


@contextmanager
def span(name: str, parent: str | None = None, **attributes: str | int | float) -> Iterator[None]:
    """A span around a hop, under `parent` (a traceparent) or the current one; outgoing calls inside carry it on.

    Without tracing configured it only keeps the caller's context, so that a trace never breaks at this process.
    """
    if _provider is None:
        if parent is None:
            yield
            return
        token = traceparent.set(parent)
        try:
            yield
        finally:
            traceparent.reset(token)
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()
    context = propagator.extract({TRACEPARENT: parent if parent is not None else traceparent.get()})
    with _provider.get_tracer("uplion").start_as_current_span(name, context, attributes=attributes):
        carrier: dict[str, str] = {}
        propagator.inject(carrier)
        token = traceparent.set(carrier.get(TRACEPARENT, ""))
        try:
            yield
        finally:
            traceparent.reset(token)


def finished_span(
    name: str, parent: str, started_seconds: float, ended_seconds: float, attributes: Mapping[str, str | int]
) -> None:
    """A span of something that is over, for what begins and ends in different places; unix seconds."""
    if _provider is None:
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({TRACEPARENT: parent})
    tracer = _provider.get_tracer("uplion")
    made = tracer.start_span(name, context, start_time=int(started_seconds * 1e9), attributes=dict(attributes))
    made.end(int(ended_seconds * 1e9))


def outgoing() -> dict[str, str]:
    """Headers (or gRPC metadata) that carry the current trace on; empty when there is none."""
    parent = traceparent.get()
    return {TRACEPARENT: parent} if parent else {}


def incoming(headers: Mapping[str, str] | None) -> str:
    """The traceparent among some headers; an empty string where there is none, or any other text of a client's."""
    found = (headers or {}).get(TRACEPARENT, "")
    return found if _W3C(found) else ""
