"""The routes of both listeners. A request without one is refused in Envoy, with 404, 405 or 415."""

from collections.abc import Sequence

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutation, HeaderMutationRemoveOnMatch
from envoy_data_plane.envoy.config.core.v3 import DataSource, HeaderValue, HeaderValueOption
from envoy_data_plane.envoy.config.core.v3 import HeaderValueOptionHeaderAppendAction as AppendAction
from envoy_data_plane.envoy.config.route.v3 import (
    DirectResponseAction,
    HeaderMatcher,
    RetryPolicy,
    Route,
    RouteAction,
    RouteActionMaxStreamDuration,
    RouteConfiguration,
    RouteMatch,
    RouteMatchGrpcRouteMatchOptions,
    VirtualHost,
)
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import HeaderMutationPerRoute, Mutations
from envoy_data_plane.envoy.type.matcher.v3 import RegexMatcher, StringMatcher
from envoy_data_plane.google.protobuf import Any

from common import admin_api, names
from common.operations import FACTS_NAMESPACE, GRPC_CONTENT_TYPE, Operation
from edge import clusters
from edge.building import seconds
from edge.descriptors import CONTROL_SERVICES
from edge.filters import (
    FILTER_BUFFER,
    FILTER_FRAMES,
    FILTER_HEADERS,
    FILTER_JSON,
    admin_body,
    body_facts,
    whole_message,
)
from edge.settings import EdgeSettings

REFUSE = "refuse/"  # lua/front.lua answers a route of this name with the status after it: "refuse/405/GET, POST"


def public_routes(settings: EdgeSettings, operations: Sequence[Operation]) -> RouteConfiguration:
    """The public operations by HTTP and by gRPC, and nothing else."""
    http = [operation for operation in operations if operation.path]
    verbs: dict[str, list[str]] = {}  # of each path
    for operation in http:
        if not operation.pattern:
            verbs.setdefault(operation.path, []).append(operation.method)
    services = dict.fromkeys(operation.service for operation in operations if not operation.path)
    routes = [
        _refuse(415, RouteMatch(prefix="/v1/", headers=[_compressed()])),
        *(_transcoded(operation, settings) for operation in http),
        *(_refuse(405, RouteMatch(path=path, headers=[_not_grpc()]), allowed) for path, allowed in verbs.items()),
        *(route for service in services for route in _native(service, clusters.ROUTER, settings)),
        _refuse(404, RouteMatch(prefix="/")),
    ]
    return _configuration("public", routes)


def admin_routes(settings: EdgeSettings) -> RouteConfiguration:
    """The admin API, by HTTP and native, and nothing else."""
    verbs: dict[str, list[str]] = {}  # of each path
    for route in admin_api.routes():
        verbs.setdefault(route.pattern, []).append(route.verb)
    routes = [
        _refuse(415, RouteMatch(prefix="/admin/v1/", headers=[_compressed()])),
        *(each for pattern, allowed in verbs.items() for each in _admin(pattern, allowed, settings)),
        *(route for service in CONTROL_SERVICES for route in _native(service, clusters.CONTROL, settings)),
        _refuse(404, RouteMatch(prefix="/")),
    ]
    for each in routes:
        if each.route is not None:
            each.typed_per_filter_config[FILTER_BUFFER] = Any.pack(admin_body(settings))
    return _configuration("admin", routes)


def _admin(pattern: str, verbs: list[str], settings: EdgeSettings) -> list[Route]:
    """What is called by these verbs at this path."""
    path = RegexMatcher(regex=pattern)
    methods = HeaderMatcher(name=":method", string_match=_regex("|".join(verbs)))
    called = Route(
        name="admin",
        match=RouteMatch(safe_regex=path, headers=[methods, _not_grpc()]),
        route=_action(clusters.CONTROL, settings),
        typed_per_filter_config={FILTER_HEADERS: Any.pack(_http_only_headers([]))},
    )
    return [called, _refuse(405, RouteMatch(safe_regex=path, headers=[_not_grpc()]), verbs)]


def _configuration(name: str, routes: list[Route]) -> RouteConfiguration:
    return RouteConfiguration(
        name=name,
        validate_clusters=True,
        virtual_hosts=[VirtualHost(name=name, domains=["*"], routes=routes)],
    )


def _transcoded(operation: Operation, settings: EdgeSettings) -> Route:
    """The route of an operation with an HTTP path: `x-uplion-model` is what the body says, or absent."""
    requests = [HeaderMutation(remove=names.HEADER_MODEL)]
    filters = {}
    facts = operation.facts
    if facts is not None:
        model = HeaderValue(key=names.HEADER_MODEL, value=f"%DYNAMIC_METADATA({FACTS_NAMESPACE}:{facts.model})%")
        overwrite = AppendAction.OVERWRITE_IF_EXISTS_OR_ADD
        requests.append(HeaderMutation(append=HeaderValueOption(header=model, append_action=overwrite)))
        filters[FILTER_JSON] = Any.pack(body_facts(facts))  # the filter is disabled elsewhere
    filters[FILTER_HEADERS] = Any.pack(_http_only_headers(requests))
    headers = [_method(operation.method), _not_grpc()]
    if operation.pattern:
        match = RouteMatch(safe_regex=RegexMatcher(regex=operation.pattern), headers=headers)
    else:
        match = RouteMatch(path=operation.path, headers=headers)
    return Route(
        name=operation.name,
        match=match,
        route=_action(clusters.ROUTER, settings),
        typed_per_filter_config=filters,
    )


def _http_only_headers(requests: list[HeaderMutation]) -> HeaderMutationPerRoute:
    """An HTTP client can neither set gRPC's headers (`grpc-timeout`, `grpc-encoding`) nor see its trailers."""
    grpc = HeaderMutation(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=StringMatcher(prefix="grpc-")))
    cookie = HeaderMutation(remove="cookie")
    return HeaderMutationPerRoute(
        mutations=Mutations(
            request_mutations=[*requests, grpc, cookie],
            request_trailers_mutations=[_all_headers()],
            response_trailers_mutations=[grpc],
        )
    )


def _native_headers() -> HeaderMutationPerRoute:
    """A gRPC call has no trailers of the client's."""
    return HeaderMutationPerRoute(mutations=Mutations(request_trailers_mutations=[_all_headers()]))


def _all_headers() -> HeaderMutation:
    return HeaderMutation(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=_regex(".*")))


def _native(service: str, cluster: str, settings: EdgeSettings) -> list[Route]:
    """A gRPC server inflates a message before it checks the size, so the edge refuses compressed ones."""
    prefix = f"/{service}/"
    encoding = HeaderMatcher(
        name="grpc-encoding",
        string_match=StringMatcher(exact="identity"),
        invert_match=True,  # matches a header that says something else; no header means no compression
    )
    match = RouteMatch(prefix=prefix, headers=[_method("POST")], grpc=RouteMatchGrpcRouteMatchOptions())
    compressed = RouteMatch(prefix=prefix, headers=[_method("POST"), encoding], grpc=RouteMatchGrpcRouteMatchOptions())
    route = Route(
        name=f"native{prefix}",
        match=match,
        route=_action(cluster, settings, native=True),
        typed_per_filter_config={
            FILTER_FRAMES: Any.pack(whole_message()),
            FILTER_HEADERS: Any.pack(_native_headers()),
        },
    )
    return [
        _refuse(415, compressed),
        route,
        _refuse(415, RouteMatch(prefix=prefix, headers=[_method("POST")])),
        _refuse(405, RouteMatch(prefix=prefix), ["POST"]),
    ]


def _action(cluster: str, settings: EdgeSettings, *, native: bool = False) -> RouteAction:
    """No response timeout but the stream's own; a retry only while the service cannot have seen the request.

    A native caller's `grpc-timeout` is its deadline. On an HTTP route it would act before any filter could remove it.
    """
    longest = seconds(settings.max_stream_seconds)
    return RouteAction(
        cluster=cluster,
        timeout=seconds(0),
        idle_timeout=seconds(settings.stream_idle_timeout_seconds),
        max_stream_duration=RouteActionMaxStreamDuration(
            max_stream_duration=longest, grpc_timeout_header_max=longest if native else None
        ),
        retry_policy=RetryPolicy(retry_on="connect-failure,refused-stream", num_retries=2),
    )


def _refuse(status: int, match: RouteMatch, allowed: Sequence[str] = ()) -> Route:
    """`allowed` are the methods that a 405 names."""
    return Route(
        name=f"{REFUSE}{status}{'/' if allowed else ''}{', '.join(allowed)}",
        match=match,
        direct_response=DirectResponseAction(status=status, body=DataSource(inline_string="")),
    )


def _method(method: str) -> HeaderMatcher:
    return HeaderMatcher(name=":method", string_match=StringMatcher(exact=method))


def _not_grpc() -> HeaderMatcher:
    return HeaderMatcher(
        name="content-type",
        string_match=_regex(GRPC_CONTENT_TYPE.pattern),
        invert_match=True,
        treat_missing_header_as_empty=True,
    )


def _compressed() -> HeaderMatcher:
    """A compressed body: no service inflates one, so a decompression bomb does no harm."""
    return HeaderMatcher(name="content-encoding", present_match=True)


def _regex(pattern: str) -> StringMatcher:
    return StringMatcher(safe_regex=RegexMatcher(regex=pattern))
