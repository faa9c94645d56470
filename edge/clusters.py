"""The clusters: each service behind the edge, as HTTP/2 endpoints."""

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterDiscoveryType,
    ClusterLbPolicy,
)
from envoy_data_plane.envoy.config.core.v3 import Http2ProtocolOptions
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.google.protobuf import Any

from edge.building import address, is_ip, is_socket, seconds, split
from edge.settings import EdgeSettings

AUTHZ = "authz"
ROUTER = "router"
CONTROL = "control"
OTLP = "otlp"

# The HTTP/2 windows bound what Envoy buffers of an answer whose client reads slowly.
_STREAM_WINDOW_BYTES = 256 << 10
_CONNECTION_WINDOW_BYTES = 16 << 20
_BUFFER_BYTES = 1 << 20


def clusters(settings: EdgeSettings) -> list[Cluster]:
    found = [
        _cluster(AUTHZ, settings.authz_endpoints, settings),
        _cluster(ROUTER, settings.router_endpoints, settings),
        _cluster(CONTROL, settings.control_endpoints, settings),
    ]
    if settings.otlp_endpoint is not None:
        found.append(_cluster(OTLP, (settings.otlp_endpoint.removeprefix("http://").rstrip("/"),), settings))
    return found


def _cluster(name: str, endpoints: tuple[str, ...], settings: EdgeSettings) -> Cluster:
    fixed = all(is_socket(endpoint) or is_ip(split(endpoint)[0]) for endpoint in endpoints)
    limits = CircuitBreakersThresholds(
        max_connections=1024,
        max_pending_requests=settings.max_requests,
        max_requests=settings.max_requests,
        max_retries=128,
    )
    http2 = Http2ProtocolOptions(
        max_concurrent_streams=1000,  # then another connection is opened: one connection is served by one core
        initial_stream_window_size=_STREAM_WINDOW_BYTES,
        initial_connection_window_size=_CONNECTION_WINDOW_BYTES,
    )
    protocol = HttpProtocolOptions(
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=http2)
    )
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.STATIC if fixed else ClusterDiscoveryType.STRICT_DNS,
        connect_timeout=seconds(settings.connect_timeout_seconds),
        per_connection_buffer_limit_bytes=_BUFFER_BYTES,
        lb_policy=ClusterLbPolicy.LEAST_REQUEST,
        circuit_breakers=CircuitBreakers(thresholds=[limits]),
        typed_extension_protocol_options={
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": Any.pack(protocol),
        },
        load_assignment=ClusterLoadAssignment(
            cluster_name=name,
            endpoints=[
                LocalityLbEndpoints(
                    lb_endpoints=[LbEndpoint(endpoint=Endpoint(address=address(each))) for each in endpoints]
                )
            ],
        ),
    )
