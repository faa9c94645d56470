"""The proto descriptor set that the transcoder reads: our services with everything they import."""

import importlib
import pkgutil
from collections.abc import Iterable

from google.api.annotations_pb2 import http
from google.api.http_pb2 import HttpRule
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from common import admin_api
from common.operations import Operation

CONTROL_SERVICES = tuple(service.full_name for service in admin_api.services())


def public_services(operations: Iterable[Operation]) -> list[str]:
    """The services whose methods are called by HTTP."""
    return list(dict.fromkeys(operation.service for operation in operations if operation.path))


def public_descriptors(operations: Iterable[Operation]) -> bytes:
    packages = dict.fromkeys(service.rpartition(".")[0] for service in public_services(operations))
    return _serialized(*(file for package in packages for file in _service_files(package)))


def _service_files(package: str) -> list[FileDescriptor]:
    names = (module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."))
    return [importlib.import_module(name).DESCRIPTOR for name in names if name.endswith("_service_pb2")]


def control_descriptors() -> bytes:
    """The admin methods as the edge calls them: each takes the request as it came, with the body in an HttpBody.

    A transcoder that read requests would drop the fields it does not know; control judges path, query and body itself.
    Answers are the contract's messages, which the transcoder writes as JSON.
    """
    roots = [HttpBody.DESCRIPTOR.file, *(service.file for service in admin_api.services())]
    files = FileDescriptorSet.FromString(_serialized(*roots))
    routes = {route.rpc: route for route in admin_api.routes()}
    for file in files.file:
        if file.package != admin_api.PACKAGE or not file.service:
            continue
        if roots[0].name not in file.dependency:
            file.dependency.append(roots[0].name)
        for service in file.service:
            for method in service.method:
                route = routes[f"/{file.package}.{service.name}/{method.name}"]
                rule = HttpRule(body="*")
                setattr(rule, route.verb.lower(), route.unnamed)
                method.options.Extensions[http].CopyFrom(rule)
                method.input_type = f".{HttpBody.DESCRIPTOR.full_name}"
    return files.SerializeToString(deterministic=True)


def _serialized(*roots: FileDescriptor) -> bytes:
    """Dependencies come before what imports them: Envoy loads the files in this order."""
    files = FileDescriptorSet()
    seen: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name in seen:
            return
        seen.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        files.file.append(FileDescriptorProto.FromString(file.serialized_pb))

    for root in roots:
        add(root)
    return files.SerializeToString(deterministic=True)
