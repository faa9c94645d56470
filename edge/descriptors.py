"""The proto descriptor set that the transcoder reads: our services with everything they import."""

import importlib
import pkgutil
from collections.abc import Iterable

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
    return _serialized(*(service.file for service in admin_api.services()))


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
