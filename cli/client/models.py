"""Models over the admin API, as commands use them."""

import json
from collections.abc import Iterator
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from uplion.control.v1 import model_pb2
from uplion.control.v1.model_service_pb2_grpc import ModelServiceStub

from cli.client.connection import Admin, shown_time
from common.manifest import AIModel

_PAGE_SIZE = 1000


def models(api: Admin) -> Iterator[dict[str, Any]]:
    """All models, by name."""
    request = model_pb2.ListModelsRequest(page_size=_PAGE_SIZE)
    while True:
        response = api.call(ModelServiceStub, "ListModels", request)
        yield from (_model(model) for model in response.models)
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def apply_model(api: Admin, model: AIModel) -> dict[str, Any]:
    """The model as applied."""
    manifest = ParseDict(json.loads(model.to_json()), Struct())
    return _model(api.call(ModelServiceStub, "ApplyModel", model_pb2.ApplyModelRequest(manifest=manifest)).model)


def delete_model(api: Admin, name: str) -> None:
    """Removes a model."""
    api.call(ModelServiceStub, "DeleteModel", model_pb2.DeleteModelRequest(name=name))


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
