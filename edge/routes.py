"""Which requests exist: everything not listed here is refused by name before it costs anything."""

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

from common import names
from edge import clusters
from edge.building import seconds
from edge.filters import FILTER_FRAMES, FILTER_HEADERS, FILTER_JSON, METADATA_NAMESPACE, body_facts, whole_message
from edge.settings import EdgeSettings

REFUSE = "refuse/"  # a route of this name is answered by front.lua with the status behind the slash

_NATIVE_INFERENCE = "/uplion.inference.v1.InferenceService/"
_NATIVE_CONTROL = (
    "/uplion.control.v1.AccountService/",
    "/uplion.control.v1.AlertService/",
    "/uplion.control.v1.KeyService/",
    "/uplion.control.v1.LedgerService/",
    "/uplion.control.v1.ModelService/",
    "/uplion.control.v1.PriceService/",
    "/uplion.control.v1.ProjectService/",
    "/uplion.control.v1.ReconciliationService/",
    "/uplion.control.v1.RequestService/",
    "/uplion.control.v1.StatementService/",
    "/uplion.control.v1.UsageService/",
)
_OPENAI_POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_ADMIN_METHODS = "GET|POST|PATCH|DELETE"


def public_routes(settings: EdgeSettings) -> RouteConfiguration:
    """The OpenAI surface and the native inference API, and nothing else."""
    routes = [
        _refuse(415, RouteMatch(prefix="/v1/", headers=[_compressed()])),
        *(
            _openai(path, RouteMatch(path=path, headers=[_method("POST"), _not_grpc()]), settings)
            for path in _OPENAI_POSTS
        ),
        _openai("/v1/models", RouteMatch(path="/v1/models", headers=[_method("GET"), _not_grpc()]), settings),
        _openai("/v1/models/*", RouteMatch(prefix="/v1/models/", headers=[_method("GET"), _not_grpc()]), settings),
        *(_refuse(405, RouteMatch(path=path, headers=[_not_grpc()])) for path in (*_OPENAI_POSTS, "/v1/models")),
        *_native(_NATIVE_INFERENCE, clusters.ROUTER, settings),
        _refuse(404, RouteMatch(prefix="/")),
    ]
    return _configuration("public", routes)


def admin_routes(settings: EdgeSettings) -> RouteConfiguration:
    """The admin API, transcoded and native, and nothing else."""
    methods = HeaderMatcher(name=":method", string_match=_regex(_ADMIN_METHODS))
    admin = Route(
        name="admin",
        match=RouteMatch(prefix="/admin/v1/", headers=[methods, _not_grpc()]),
        route=_action(clusters.CONTROL, settings),
        typed_per_filter_config={FILTER_HEADERS: Any.pack(_http_only_headers([]))},
    )
    routes = [
        _refuse(415, RouteMatch(prefix="/admin/v1/", headers=[_compressed()])),
        admin,
        *(route for prefix in _NATIVE_CONTROL for route in _native(prefix, clusters.CONTROL, settings)),
        _refuse(404, RouteMatch(prefix="/")),
    ]
    return _configuration("admin", routes)


def _configuration(name: str, routes: list[Route]) -> RouteConfiguration:
    return RouteConfiguration(
        name=name,
        validate_clusters=True,
        virtual_hosts=[VirtualHost(name=name, domains=["*"], routes=routes)],
    )


def _openai(name: str, match: RouteMatch, settings: EdgeSettings) -> Route:
    """An OpenAI route: `x-uplion-model` is what the body says, or absent."""
    model = HeaderMutation(
        append=HeaderValueOption(
            header=HeaderValue(key=names.HEADER_MODEL, value=f"%DYNAMIC_METADATA({METADATA_NAMESPACE}:model)%"),
            append_action=AppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    )
    requests = [HeaderMutation(remove=names.HEADER_MODEL), model]
    return Route(
        name=f"openai{name}",
        match=match,
        route=_action(clusters.ROUTER, settings),
        typed_per_filter_config={
            FILTER_HEADERS: Any.pack(_http_only_headers(requests)),
            FILTER_JSON: Any.pack(body_facts()),  # the filter is off but for such routes
        },
    )


def _http_only_headers(requests: list[HeaderMutation]) -> HeaderMutationPerRoute:
    """An HTTP client neither steers gRPC (`grpc-timeout`, `grpc-encoding`) nor sees its trailers."""
    grpc = HeaderMutation(remove_on_match=HeaderMutationRemoveOnMatch(key_matcher=StringMatcher(prefix="grpc-")))
    cookie = HeaderMutation(remove="cookie")
    return HeaderMutationPerRoute(
        mutations=Mutations(request_mutations=[*requests, grpc, cookie], response_trailers_mutations=[grpc])
    )


def _native(prefix: str, cluster: str, settings: EdgeSettings) -> list[Route]:
    """gRPC servers inflate a message before they look at its size, so a compressed one does not reach them."""
    encoding = HeaderMatcher(
        name="grpc-encoding",
        string_match=StringMatcher(exact="identity"),
        invert_match=True,  # of a header that is there: without one nothing is compressed
    )
    match = RouteMatch(prefix=prefix, headers=[_method("POST")], grpc=RouteMatchGrpcRouteMatchOptions())
    compressed = RouteMatch(prefix=prefix, headers=[_method("POST"), encoding], grpc=RouteMatchGrpcRouteMatchOptions())
    route = Route(
        name=f"native{prefix}",
        match=match,
        route=_action(cluster, settings, native=True),
        typed_per_filter_config={FILTER_FRAMES: Any.pack(whole_message())},
    )
    return [_refuse(415, compressed), route]


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


def _refuse(status: int, match: RouteMatch) -> Route:
    return Route(
        name=f"{REFUSE}{status}",
        match=match,
        direct_response=DirectResponseAction(status=status, body=DataSource(inline_string="")),
    )


def _method(method: str) -> HeaderMatcher:
    return HeaderMatcher(name=":method", string_match=StringMatcher(exact=method))


def _not_grpc() -> HeaderMatcher:
    return HeaderMatcher(
        name="content-type",
        string_match=StringMatcher(prefix="application/grpc", ignore_case=True),
        invert_match=True,
        treat_missing_header_as_empty=True,
    )


def _compressed() -> HeaderMatcher:
    """A compressed body: nothing behind the edge inflates one, so a bomb has nowhere to go off."""
    return HeaderMatcher(name="content-encoding", present_match=True)


def _regex(pattern: str) -> StringMatcher:
    return StringMatcher(safe_regex=RegexMatcher(regex=pattern))
