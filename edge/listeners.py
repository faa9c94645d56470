"""The public listener and the admin listener. Neither has a route of the other."""

from collections.abc import Sequence

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutation, HeaderMutationRemoveOnMatch
from envoy_data_plane.envoy.config.core.v3 import (
    CidrRange,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    HttpProtocolOptionsHeadersWithUnderscoresAction,
    SubstitutionFormatString,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration
from envoy_data_plane.envoy.config.trace.v3 import OpenTelemetryConfig, TracingHttp
from envoy_data_plane.envoy.extensions.access_loggers.file.v3 import FileAccessLog
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerCodecType,
    HttpConnectionManagerInternalAddressConfig,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerTracing,
    HttpFilter,
    LocalReplyConfig,
)
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    HeaderMutation as EarlyHeaderMutation,
)
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher
from envoy_data_plane.envoy.type.v3 import Percent
from envoy_data_plane.google.protobuf import Any, Struct

from common import names
from common.operations import Operation
from edge import clusters, filters, replies, routes, scripts
from edge.building import address, extension, seconds
from edge.settings import EdgeSettings

# A client connection's write buffer; a slow reader can make Envoy hold twice as much.
_BUFFER_BYTES = 256 << 10
_STREAMS_PER_CONNECTION = 1024
# Envoy's own limits. It answers HTTP/2 beyond them with a reset, and what a filter adds counts too: ext_authz ends a
# request that it brings above them with an empty 500. So front.lua refuses far below them, with 431.
_HEADERS_KB = 4 * scripts.MOST_HEADER_BYTES >> 10
_HEADERS = 8 * scripts.MOST_HEADERS

_ACCESS_LOG = {
    "time": "%START_TIME%",
    "request_id": replies.REQUEST_ID,
    "traceparent": "%REQ(TRACEPARENT)%",
    "method": "%REQ(:METHOD)%",
    "route": "%ROUTE_NAME%",
    "status": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS_NUMBER%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "received_bytes": "%BYTES_RECEIVED%",
    "sent_bytes": "%BYTES_SENT%",
    "duration_ms": "%DURATION%",
    "upstream": "%UPSTREAM_HOST%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "protocol": "%PROTOCOL%",
    "account": f"%REQ({names.HEADER_ACCOUNT})%",
    "key": f"%REQ({names.HEADER_KEY})%",
    "reservation": f"%REQ({names.HEADER_RESERVATION})%",
}


def listeners(settings: EdgeSettings, operations: Sequence[Operation]) -> list[Listener]:
    return [
        _listener(
            "public",
            settings.public_address,
            settings,
            routes.public_routes(settings, operations),
            filters.public_filters(settings, operations),
            replies.local_replies(operations),
        ),
        _listener(
            "admin",
            settings.admin_address,
            settings,
            routes.admin_routes(settings),
            filters.admin_filters(settings),
            replies.local_replies(()),
        ),
    ]


def _listener(
    name: str,
    listen_address: str,
    settings: EdgeSettings,
    route_config: RouteConfiguration,
    http_filters: list[HttpFilter],
    local_reply_config: LocalReplyConfig,
) -> Listener:
    manager = _connection_manager(name, settings)
    manager.route_config = route_config
    manager.http_filters = http_filters
    manager.local_reply_config = local_reply_config
    network = Filter(name="envoy.filters.network.http_connection_manager", typed_config=Any.pack(manager))
    return Listener(
        name=name,
        address=address(listen_address),
        per_connection_buffer_limit_bytes=_BUFFER_BYTES,
        filter_chains=[FilterChain(filters=[network])],
    )


def _connection_manager(name: str, settings: EdgeSettings) -> HttpConnectionManager:
    """What happens before any filter: normalised paths, refused headers, timeouts, request ids."""
    return HttpConnectionManager(
        stat_prefix=name,
        codec_type=HttpConnectionManagerCodecType.AUTO,
        server_name="uplion",
        use_remote_address=True,
        xff_num_trusted_hops=settings.trusted_hops,
        # No address is internal: a loopback client is trusted as little as the internet (x-envoy-*, x-request-id).
        internal_address_config=HttpConnectionManagerInternalAddressConfig(
            cidr_ranges=[CidrRange(address_prefix="255.255.255.255", prefix_len=32)]
        ),
        generate_request_id=True,
        preserve_external_request_id=False,
        always_set_request_id_in_response=True,
        early_header_mutation_extensions=[
            extension("envoy.http.early_header_mutation.header_mutation", EarlyHeaderMutation(mutations=_stripped()))
        ],
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=HttpConnectionManagerPathWithEscapedSlashesAction.REJECT_REQUEST,
        common_http_protocol_options=HttpProtocolOptions(
            idle_timeout=seconds(settings.idle_connection_seconds),
            max_headers_count=_HEADERS,
            headers_with_underscores_action=HttpProtocolOptionsHeadersWithUnderscoresAction.REJECT_REQUEST,
        ),
        http_protocol_options=Http1ProtocolOptions(
            accept_http_10=True,  # Debian's nginx speaks it to what is behind it
            default_host_for_http_10="uplion",  # nothing is routed by the host
        ),
        http2_protocol_options=Http2ProtocolOptions(
            max_concurrent_streams=_STREAMS_PER_CONNECTION,
            initial_stream_window_size=_BUFFER_BYTES,
            initial_connection_window_size=16 << 20,
        ),
        max_request_headers_kb=_HEADERS_KB,
        request_headers_timeout=seconds(settings.request_headers_timeout_seconds),
        request_timeout=seconds(settings.request_timeout_seconds),
        stream_idle_timeout=seconds(settings.stream_idle_timeout_seconds),
        access_log=_access_log(settings),
        tracing=_tracing(settings),
    )


def _stripped() -> list[HeaderMutation]:
    """Removes headers that no client may send. `x-uplion-model` stays for native calls; authz overwrites it."""
    patterns = (
        StringMatcher(
            safe_regex=RegexMatcher(regex=_all_but(names.HEADER_PREFIX, names.HEADER_MODEL)), ignore_case=False
        ),
        StringMatcher(prefix="x-envoy-"),
    )
    removed = [HeaderMutation(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=pattern)) for pattern in patterns]
    return [*removed, HeaderMutation(remove=names.HEADER_REQUEST_ID)]


def _all_but(prefix: str, kept: str) -> str:
    """A regex (RE2 has no look-ahead) for every name that starts with the prefix, except one."""
    rest = kept.removeprefix(prefix)
    other = [f"{rest[:index]}([^{letter}].*)?" for index, letter in enumerate(rest)]
    return f"{prefix}({'|'.join([*other, rest + '.+'])})"


def _access_log(settings: EdgeSettings) -> list[AccessLog]:
    """The access log holds facts about a request and never its content: no credential, no query, no client's header."""
    if settings.access_log_path is None:
        return []
    line = SubstitutionFormatString(json_format=Struct.from_dict(_ACCESS_LOG), omit_empty_values=True)
    log = FileAccessLog(path=settings.access_log_path, log_format=line)
    return [AccessLog(name="envoy.access_loggers.file", typed_config=Any.pack(log))]


def _tracing(settings: EdgeSettings) -> HttpConnectionManagerTracing | None:
    if settings.otlp_endpoint is None:
        return None
    provider = OpenTelemetryConfig(
        grpc_service=GrpcService(envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=clusters.OTLP), timeout=seconds(1)),
        service_name="edge",
    )
    return HttpConnectionManagerTracing(
        random_sampling=Percent(value=settings.trace_sample_percent),
        spawn_upstream_span=True,
        provider=TracingHttp(name="envoy.tracers.opentelemetry", typed_config=Any.pack(provider)),
    )
