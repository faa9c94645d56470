"""The admin API as the commands use it: gRPC through Envoy's admin listener, with the first admin key."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from uplion.control.v1 import (
    model_pb2,
    model_service_pb2_grpc,
)

from cli.options import running
from cli.output import CommandError
from common.manifest import AIModel
from stack.state import State

R = TypeVar("R")

_STREAM_SECONDS = 3600.0  # of a file that comes in pieces
_TIMEOUT_SECONDS = 10.0
_PAGE_SIZE = 1000


class Admin:
    """One connection to the admin API."""

    def __init__(self, channel: grpc.Channel, key: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {key}"),)

    def models(self) -> Iterator[dict[str, Any]]:
        """All models, by name."""
        stub = model_service_pb2_grpc.ModelServiceStub(self._channel)
        page_token = ""
        while True:
            request = model_pb2.ListModelsRequest(page_size=_PAGE_SIZE, page_token=page_token)
            response = self._call(stub.ListModels, request)
            yield from (_model(model) for model in response.models)
            if not (page_token := response.next_page_token):
                return

    def apply_model(self, model: AIModel) -> dict[str, Any]:
        """The model as applied."""
        stub = model_service_pb2_grpc.ModelServiceStub(self._channel)
        manifest = ParseDict(json.loads(model.to_json()), Struct())
        return _model(self._call(stub.ApplyModel, model_pb2.ApplyModelRequest(manifest=manifest)).model)

    def delete_model(self, name: str) -> None:
        """Removes a model."""
        stub = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._call(stub.DeleteModel, model_pb2.DeleteModelRequest(name=name))

    def call(
        self,
        stub: Callable[[grpc.Channel], Any],
        method: str,
        request: Message,
        *,
        seconds: float = _TIMEOUT_SECONDS,
    ) -> Any:
        """The answer to any call of the admin API."""
        return self._call(getattr(stub(self._channel), method), request, seconds)

    def stream(self, stub: Callable[[grpc.Channel], Any], method: str, request: Message) -> Iterator[Any]:
        """The answers to a call that sends many."""
        call = getattr(stub(self._channel), method)
        try:
            yield from call(request, metadata=self._metadata, timeout=_STREAM_SECONDS)
        except grpc.RpcError as problem:
            raise CommandError(_sentence(problem)) from problem

    def _call(self, method: Callable[..., R], request: Message, seconds: float = _TIMEOUT_SECONDS) -> R:
        try:
            return method(request, metadata=self._metadata, timeout=seconds)
        except grpc.RpcError as problem:
            raise CommandError(_sentence(problem)) from problem


@contextmanager
def admin(state: State) -> Iterator[Admin]:
    """A connection to the running stack's admin API."""
    address = running(state)["admin_address"]
    key = state.first_key("admin_key")
    with grpc.insecure_channel(address) as channel:
        yield Admin(channel, key)


def _sentence(problem: grpc.RpcError) -> str:
    if not isinstance(problem, grpc.Call):
        return str(problem)
    code, details = problem.code(), problem.details()
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"the admin API does not answer now ({details}); look at: uplion status"
    return details or code.name.lower()


def _model(model: model_pb2.Model) -> dict[str, Any]:
    manifest = MessageToDict(model.manifest)
    spec = manifest.get("spec", {})
    workers = [
        {
            "id": worker.id,
            "address": worker.address,
            "pid": worker.pid or None,
            "slots_total": worker.slots_total,
            "slots_free": worker.slots_free,
        }
        for worker in model.workers
    ]
    return {
        "name": model.name,
        "phase": _enum(model_pb2.Model.DESCRIPTOR, "phase", model.phase),
        "message": model.message,
        "type": spec.get("type"),
        "model": spec.get("model"),
        "replicas": int(spec.get("replicas", 1)),
        "revision": model.revision,
        "queued": model.queued,
        "workers": workers,
        "update_time": shown_time(model, "update_time"),
        "manifest": manifest,
    }


def _enum(descriptor: Any, field: str, value: int) -> str:
    """MODEL_PHASE_READY -> ready."""
    enum = descriptor.fields_by_name[field].enum_type
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(enum.values_by_number[value].name).removeprefix(prefix).lower()


def shown_time(message: Message, field: str) -> str | None:
    """A moment in RFC 3339; None when it is unset."""
    if not message.HasField(field):
        return None
    timestamp: Timestamp = getattr(message, field)
    return timestamp.ToJsonString()
