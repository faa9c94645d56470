"""The admin API as proto/uplion/control/v1 declares it: its services, their files, and the scope each method needs.

A new `*_service.proto` there is found by its name; routes, transcoding, registration and permissions follow from it
(ADR 9).
"""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import uplion.control.v1
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
