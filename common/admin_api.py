"""The admin API as proto/uplion/control/v1 declares it: its services, their routes, and the scope each method needs.

A new `*_service.proto` there is found by its name; routes, transcoding, registration and permissions follow from it
(ADR 9).
"""

import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import uplion.control.v1
from google.api.annotations_pb2 import http
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from uplion.control.v1.options_pb2 import AdminScope, required_scope

from common import names

PACKAGE = "uplion.control.v1"
_SCOPES = {
    AdminScope.ADMIN_SCOPE_READ: names.SCOPE_ADMIN_READ,
    AdminScope.ADMIN_SCOPE_WRITE: names.SCOPE_ADMIN_WRITE,
    AdminScope.ADMIN_SCOPE_OPERATE: names.SCOPE_ADMIN,
}
ADMIN_SCOPES = tuple(_SCOPES[scope] for scope in sorted(_SCOPES, reverse=True))
"""Every scope that a method of the admin API may need, the widest first."""


_VARIABLE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Route:
    """How a method is called by HTTP: its `google.api.http`."""

    method: MethodDescriptor
    verb: str  # such as "POST"
    path: str  # such as "/admin/v1/keys/{id}:rotate"
    takes_body: bool  # all fields that the path does not hold are in a JSON body, else in the query

    @property
    def rpc(self) -> str:
        """The method's path in gRPC: "/package.Service/Method"."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def variables(self) -> tuple[str, ...]:
        """The fields that the path holds."""
        return tuple(_VARIABLE.findall(self.path))

    @property
    def pattern(self) -> str:
        """Its paths as a regular expression, which captures the variables."""
        return "([^/]+)".join(map(re.escape, _VARIABLE.split(self.path)[::2]))

    @property
    def unnamed(self) -> str:
        """The path without the variables' names: "/admin/v1/keys/*:rotate"."""
        return _VARIABLE.sub("*", self.path)


def route(method: MethodDescriptor) -> Route:
    """Raises ValueError when a method has none."""
    rule = method.GetOptions().Extensions[http]
    verb = rule.WhichOneof("pattern")
    if verb is None or verb == "custom" or rule.body not in ("", "*"):
        raise ValueError(f"{method.full_name} has no HTTP route")
    return Route(method, verb.upper(), getattr(rule, verb), bool(rule.body))


@cache
def routes() -> tuple[Route, ...]:
    """Every method's. A path is meant for the first that matches it: one that ends in a verb comes before others."""
    found = [route(method) for service in services() for method in service.methods]
    return tuple(sorted(found, key=lambda each: (":" not in each.path, each.path, each.verb)))


@cache
def services() -> tuple[ServiceDescriptor, ...]:
    """Every service of the admin API, by name."""
    modules = (module.name for module in pkgutil.iter_modules(uplion.control.v1.__path__, f"{PACKAGE}."))
    files = [importlib.import_module(name).DESCRIPTOR for name in modules if name.endswith("_service_pb2")]
    found: list[ServiceDescriptor] = [service for file in files for service in file.services_by_name.values()]
    return tuple(sorted(found, key=lambda service: service.full_name))


def required(method: MethodDescriptor) -> str | None:
    """The least scope that a method needs; None when it declares none, and is refused to everyone."""
    return _SCOPES.get(method.GetOptions().Extensions[required_scope])


@cache
def scopes() -> Mapping[str, str]:
    """The least scope of every method that declares one, by its path in gRPC: "/package.Service/Method"."""
    found = {}
    for service in services():
        for method in service.methods:
            if scope := required(method):
                found[f"/{service.full_name}/{method.name}"] = scope
    return MappingProxyType(found)


def find(verb: str, path: str) -> Route | None:
    """The route of an HTTP request; None: it has none. A query counts for nothing."""
    path = path.partition("?")[0]
    return next((route for pattern, route in _patterns() if route.verb == verb and pattern.fullmatch(path)), None)


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], Route], ...]:
    return tuple((re.compile(route.pattern), route) for route in routes())
