"""Models over the admin API, as commands use them."""

import json
from collections.abc import Iterator

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from uplion.control.v1 import model_pb2
from uplion.control.v1.model_service_pb2_grpc import ModelServiceStub

from cli.client.connection import Admin, shown_time
from cli.output import JsonObject
from common.manifest import AIModel


def models(api: Admin) -> Iterator[JsonObject]:
    """All models, by name."""
    for page in api.pages(api.stub(ModelServiceStub).ListModels, model_pb2.ListModelsRequest()):
        yield from map(_model, page.models)


def apply_model(api: Admin, model: AIModel) -> JsonObject:
    """The model as applied."""
    manifest = ParseDict(json.loads(model.to_json()), Struct())
    return _model(api.call(api.stub(ModelServiceStub).ApplyModel, model_pb2.ApplyModelRequest(manifest=manifest)).model)


def delete_model(api: Admin, name: str) -> None:
    """Removes a model."""
    api.call(api.stub(ModelServiceStub).DeleteModel, model_pb2.DeleteModelRequest(name=name))


def _model(model: model_pb2.Model) -> JsonObject:
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
        "phase": model_pb2.ModelPhase.Name(model.phase).removeprefix("MODEL_PHASE_").lower(),
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
