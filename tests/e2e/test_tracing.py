"""One request is one trace: Envoy, router and worker, sent over OTLP to a collector of the test's own."""

import concurrent.futures
from collections.abc import Iterator

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.kit.platform import REPOSITORY, SYNTHETIC, Up
from tests.kit.until import until_sync

CANARY = "xyzzy-canary-of-spans"


class _Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps (trace id, service, span name) of everything it is sent."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, str]] = []
        self.sent = b""

    def Export(self, request, context):  # noqa: N802
        self.sent += request.SerializeToString()
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                self.spans += [(span.trace_id.hex(), service, span.name) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[_Collector, str]]:
    servicer = _Collector()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(0).wait()


def test_a_request_is_one_trace_from_the_edge_to_the_worker(
    start_platform: Up, collector: tuple[_Collector, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, endpoint = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    platform = start_platform("-f", str(REPOSITORY / "tests/e2e/synthetic.yaml"))
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    platform.client().chat.completions.create(
        model=SYNTHETIC,
        messages=[{"role": "user", "content": CANARY}],
        max_tokens=3,
        extra_headers={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"},
    )

    def ours() -> set[str]:
        return {name for trace, _, name in seen.spans if trace == trace_id}

    until_sync(lambda: {"router.chat", "router.queue", "inference.chat"} <= ours())
    until_sync(lambda: [service for trace, service, _ in seen.spans if trace == trace_id and service == "edge"])
    assert platform.end() == 0
    assert trace_id in seen.sent.hex()
    assert CANARY.encode() not in seen.sent
