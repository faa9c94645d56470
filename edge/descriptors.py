"""The proto descriptor set that the transcoder reads: our services with everything they import."""

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from uplion.control.v1 import (
    account_service_pb2,
    alert_service_pb2,
    key_service_pb2,
    ledger_service_pb2,
    model_service_pb2,
    price_service_pb2,
    project_service_pb2,
    reconciliation_service_pb2,
    request_service_pb2,
    statement_service_pb2,
    usage_service_pb2,
)
from uplion.openai.v1 import openai_service_pb2

from common.operations import OPERATIONS

PUBLIC_SERVICES = tuple(dict.fromkeys(operation.service for operation in OPERATIONS if operation.path))
CONTROL_SERVICES = (
    "uplion.control.v1.AccountService",
    "uplion.control.v1.AlertService",
    "uplion.control.v1.KeyService",
    "uplion.control.v1.LedgerService",
    "uplion.control.v1.ModelService",
    "uplion.control.v1.PriceService",
    "uplion.control.v1.ProjectService",
    "uplion.control.v1.ReconciliationService",
    "uplion.control.v1.RequestService",
    "uplion.control.v1.StatementService",
    "uplion.control.v1.UsageService",
)


def public_descriptors() -> bytes:
    return _serialized(openai_service_pb2.DESCRIPTOR)


def control_descriptors() -> bytes:
    return _serialized(
        account_service_pb2.DESCRIPTOR,
        alert_service_pb2.DESCRIPTOR,
        key_service_pb2.DESCRIPTOR,
        ledger_service_pb2.DESCRIPTOR,
        model_service_pb2.DESCRIPTOR,
        price_service_pb2.DESCRIPTOR,
        project_service_pb2.DESCRIPTOR,
        reconciliation_service_pb2.DESCRIPTOR,
        request_service_pb2.DESCRIPTOR,
        statement_service_pb2.DESCRIPTOR,
        usage_service_pb2.DESCRIPTOR,
    )


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
