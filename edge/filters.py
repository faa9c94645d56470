"""The HTTP filters of a listener, in order; the order is the security policy.

    local_ratelimit (429) -> lua (404 for what has no route, 401 for what is no key) -> buffer (413)
      -> lua (400 for what is no gRPC message; native calls) -> json_to_metadata (body.model; OpenAI's calls)
      -> header_mutation (x-uplion-model) -> ext_authz -> grpc_json_transcoder -> router

What comes before ext_authz costs a few microseconds of Envoy, so that a flood stays here.

An answer passes them in reverse, so the Lua filter sees it last: it turns `x-uplion-status` into `:status`, a bare gRPC
error into an error object of the route's dialect, and removes every `grpc-*` header from what an HTTP client gets.
"""

from collections.abc import Iterable, Sequence

from betterproto2 import Message
from envoy_data_plane.envoy.config.core.v3 import ApiVersion, DataSource, GrpcService, GrpcServiceEnvoyGrpc, HeaderValue
from envoy_data_plane.envoy.extensions.filters.http.buffer.v3 import Buffer, BufferPerRoute
from envoy_data_plane.envoy.extensions.filters.http.ext_authz.v3 import ExtAuthz
from envoy_data_plane.envoy.extensions.filters.http.grpc_json_transcoder.v3 import (
    GrpcJsonTranscoder,
    GrpcJsonTranscoderPrintOptions,
    GrpcJsonTranscoderRequestValidationOptions,
)
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import HeaderMutation
from envoy_data_plane.envoy.extensions.filters.http.json_to_metadata.v3 import (
    JsonToMetadata,
    JsonToMetadataKeyValuePair,
    JsonToMetadataMatchRules,
    JsonToMetadataRule,
    JsonToMetadataSelector,
)
from envoy_data_plane.envoy.extensions.filters.http.lua.v3 import Lua, LuaPerRoute
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.type.matcher.v3 import ListStringMatcher, RegexMatcher, StringMatcher
from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode
from envoy_data_plane.google.protobuf import Any

from common import names
from common.operations import FACTS_NAMESPACE, BodyFacts, Operation
from credentials import headers
from edge import clusters, descriptors, scripts
from edge.building import seconds
from edge.limiting import request_rates
from edge.settings import EdgeSettings

FILTER_BUFFER = "envoy.filters.http.buffer"
FILTER_HEADERS = "envoy.filters.http.header_mutation"
FILTER_FRAMES = "uplion.frames"
FILTER_JSON = "envoy.filters.http.json_to_metadata"

# The headers that authz decides by. A short list halves a check's parse, and cookies never leave the edge.
_AUTHZ_HEADERS = (*headers.HEADERS, "content-type", "content-length", names.HEADER_REQUEST_ID, names.HEADER_CLIENT)
_PROTOBUF_OVERHEAD_BYTES = 4096
_ADMIN_BODY_BYTES = 512 << 10  # twice the largest manifest; control reads no more in one turn of its loop


def public_filters(settings: EdgeSettings, operations: Sequence[Operation]) -> list[HttpFilter]:
    transcoder = _transcoder(
        settings, descriptors.public_descriptors(operations), descriptors.public_services(operations)
    )
    transcoder.ignore_unknown_query_parameters = True  # Azure's clients send ?api-version=
    return _filters(settings, names.LISTENER_PUBLIC, operations, transcoder)


def admin_filters(settings: EdgeSettings) -> list[HttpFilter]:
    transcoder = _transcoder(settings, descriptors.control_descriptors(), descriptors.CONTROL_SERVICES)
    transcoder.ignore_unknown_query_parameters = True  # control refuses them by name
    transcoder.print_options = GrpcJsonTranscoderPrintOptions(
        preserve_proto_field_names=True, always_print_primitive_fields=True
    )
    return _filters(settings, names.LISTENER_ADMIN, (), transcoder)


def _filters(
    settings: EdgeSettings, listener: str, operations: Sequence[Operation], transcoder: GrpcJsonTranscoder
) -> list[HttpFilter]:
    front = DataSource(inline_string=scripts.front(settings, operations))
    chain = [
        _filter("envoy.filters.http.local_ratelimit", request_rates(settings, listener)),
        _filter("envoy.filters.http.lua", Lua(default_source_code=front)),
        _filter(FILTER_BUFFER, Buffer(max_request_bytes=settings.max_body_bytes)),
    ]
    native_only = _filter(FILTER_FRAMES, Lua())
    native_only.disabled = True
    chain.append(native_only)
    if listener == names.LISTENER_PUBLIC:
        facts_only = _filter(FILTER_JSON, body_facts(BodyFacts()))
        facts_only.disabled = True
        chain.append(facts_only)
    chain += [
        _filter(FILTER_HEADERS, HeaderMutation()),
        _filter("envoy.filters.http.ext_authz", _authz(settings, listener)),
        _filter("envoy.filters.http.grpc_json_transcoder", transcoder),
        _filter("envoy.filters.http.router", Router(suppress_envoy_headers=True)),
    ]
    return chain


def _filter(name: str, message: Message) -> HttpFilter:
    return HttpFilter(name=name, typed_config=Any.pack(message))


def admin_body(settings: EdgeSettings) -> BufferPerRoute:
    """The largest body of an admin call."""
    return BufferPerRoute(buffer=Buffer(max_request_bytes=min(settings.max_body_bytes, _ADMIN_BODY_BYTES)))


def whole_message() -> LuaPerRoute:
    """The script that refuses a native call whose body is not one whole gRPC message."""
    return LuaPerRoute(source_code=DataSource(inline_string=scripts.frames()))


def body_facts(facts: BodyFacts) -> JsonToMetadata:
    """Reads the fields from the body whatever its content type: curl's default is another one."""
    rules = [
        JsonToMetadataRule(
            selectors=[JsonToMetadataSelector(key=name)],
            on_present=JsonToMetadataKeyValuePair(metadata_namespace=FACTS_NAMESPACE, key=name),
        )
        for name in facts.names
    ]
    return JsonToMetadata(
        request_rules=JsonToMetadataMatchRules(
            rules=rules, allow_empty_content_type=True, allow_content_types_regex=RegexMatcher(regex=".*")
        )
    )


def _authz(settings: EdgeSettings, listener: str) -> ExtAuthz:
    """One policy for every route. An outage is 503, which clients retry; the default, 403, is never retried."""
    headers = [StringMatcher(exact=name, ignore_case=True) for name in (*_AUTHZ_HEADERS, names.HEADER_MODEL)]
    return ExtAuthz(
        grpc_service=GrpcService(
            envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=clusters.AUTHZ),
            timeout=seconds(settings.authz_timeout_seconds),
            initial_metadata=[HeaderValue(key=names.HEADER_LISTENER, value=listener)],
        ),
        transport_api_version=ApiVersion.V3,
        failure_mode_allow=False,
        status_on_error=HttpStatus(code=StatusCode.ServiceUnavailable),
        validate_mutations=True,
        metadata_context_namespaces=[FACTS_NAMESPACE],
        allowed_headers=ListStringMatcher(patterns=headers),
    )


def _transcoder(settings: EdgeSettings, descriptor_set: bytes, services: Iterable[str]) -> GrpcJsonTranscoder:
    """Routes match the path that the client sent, so a transcoded method cannot be called by its gRPC path."""
    return GrpcJsonTranscoder(
        proto_descriptor_bin=descriptor_set,
        services=list(services),
        match_incoming_request_route=True,
        request_validation_options=GrpcJsonTranscoderRequestValidationOptions(reject_unknown_method=True),
        max_request_body_size=settings.max_body_bytes + _PROTOBUF_OVERHEAD_BYTES,
        max_response_body_size=settings.max_response_message_bytes,
    )
