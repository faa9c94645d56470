"""The edge's settings: its addresses, those of the services, and its limits."""

from dataclasses import dataclass
from typing import ClassVar

from common.settings import setting


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """One Envoy. An address is `unix:/path` or `host:port`; Envoy's admin page shows the port chosen for port 0."""

    PREFIX: ClassVar[str] = "EDGE"

    public_address: str = setting(doc="host:port of the OpenAI surface and the native inference API")
    admin_address: str = setting(doc="host:port of the admin API; keep it off the public network")
    envoy_admin_address: str = setting(
        doc="host:port or unix:/path of Envoy's own admin page; it can stop Envoy: private"
    )
    authz_endpoints: tuple[str, ...] = setting(doc="host:port or unix:/path of each authz server, comma separated")
    router_endpoints: tuple[str, ...] = setting(doc="host:port or unix:/path of each router, comma separated")
    control_endpoints: tuple[str, ...] = setting(doc="host:port or unix:/path of each control server, comma separated")

    max_body_bytes: int = setting(4 << 20, doc="bytes; a larger request body is answered with 413")
    max_response_message_bytes: int = setting(
        64 << 20, doc="bytes of one message of an answer (a whole non-streamed answer, or one frame); larger fails"
    )
    authz_timeout_seconds: float = setting(0.25, doc="seconds authz may take; then 503")
    connect_timeout_seconds: float = setting(1.0, doc="seconds to connect to a service; then the next endpoint, or 503")
    request_headers_timeout_seconds: float = setting(10.0, doc="seconds to receive a request's headers; then closed")
    request_timeout_seconds: float = setting(60.0, doc="seconds to receive a whole request; then 408")
    stream_idle_timeout_seconds: float = setting(
        600.0, doc="seconds without a byte either way; the router's keep-alive is 5"
    )
    max_stream_seconds: float = setting(
        3600.0, doc="seconds a request may take in all, streams included; then 504 or a cut"
    )
    idle_connection_seconds: float = setting(300.0, doc="seconds an idle client connection is kept; then it is closed")
    trusted_hops: int = setting(
        0, doc="trusted proxies in front, which set x-forwarded-for; 0: the peer of the connection is the client"
    )
    tokens: bool = setting(False, doc="whether signed tokens are passed to authz, which must have issuers configured")
    client_requests_per_second: int = setting(
        2_000, doc="requests a second from one client address (an IPv6 /64); more are answered with 429"
    )
    client_requests_burst: int = setting(4_000, doc="requests from one client address at once, before the rate applies")
    clients: int = setting(10_000, doc="client addresses counted at once; the least recently seen is evicted first")
    requests_per_second: int = setting(10_000, doc="requests a second to one listener; more are answered with 429")
    requests_burst: int = setting(20_000, doc="requests to one listener at once, before the rate applies")
    max_connections: int = setting(20_000, doc="client connections at once; more are closed on arrival")
    max_requests: int = setting(20_000, doc="requests at once to each service; more are answered with 503")
    access_log_path: str | None = setting(None, doc="file of the JSON access log (one line a request); unset: none")
    otlp_endpoint: str | None = setting(
        None, doc="host:port of an OTLP gRPC collector; unset: traceparent passes through"
    )
    trace_sample_percent: float = setting(100.0, doc="percent of requests traced when no traceparent decides")
