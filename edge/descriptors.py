"""The proto descriptor set that the transcoder reads: our services with everything they import."""

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from uplion.openai.v1 import openai_service_pb2

from common import admin_api
from common.operations import OPERATIONS

PUBLIC_SERVICES = tuple(dict.fromkeys(operation.service for operation in OPERATIONS if operation.path))
CONTROL_SERVICES = tuple(service.full_name for service in admin_api.services())


def public_descriptors() -> bytes:
    return _serialized(openai_service_pb2.DESCRIPTOR)


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
