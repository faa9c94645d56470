"""ModelService: applies and deletes model manifests, and lists models with the state of their workers."""

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from uplion.control.v1 import model_pb2, model_service_pb2_grpc
from uplion.control.v1.model_pb2 import Model, ModelPhase, ModelWorker
from uplion.dispatch.v1.worker_state_pb2 import WorkerState

from common import manifest, names
from control.requests import fields, paging
from control.stores.models import Applied, ModelStore

if TYPE_CHECKING:
    from control.requests.caller import Context

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_NAME_CHARACTERS = 253
_MANIFEST_BYTES = 256 * 1024  # well under NATS' limit of a message


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Manifests in KV `models`; phase, workers and queue are read from their own buckets and streams."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    async def ApplyModel(
        self, request: model_pb2.ApplyModelRequest, context: "Context"
    ) -> model_pb2.ApplyModelResponse:
        if not request.HasField("manifest"):
            raise fields.invalid("manifest", "must be set")
        if request.manifest.ByteSize() > _MANIFEST_BYTES:
            raise fields.invalid("manifest", f"must be at most {_MANIFEST_BYTES} bytes")
        model = read_manifest(request.manifest)
        applied = await self._store.apply(model)
        workers, fleet_reports, queued = await self._state()
        return model_pb2.ApplyModelResponse(
            model=_model(names.token(model.name), applied, workers, fleet_reports, queued)
        )

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: "Context"
    ) -> model_pb2.ListModelsResponse:
        size = paging.page_size(request.page_size)
        after = paging.read_name(request.page_token)
        models, state = await self._store.models(), await self._state()
        every = [_model(token, applied, *state) for token, applied in models.items()]
        rest = sorted((model for model in every if model.name > after), key=lambda model: model.name)
        response = model_pb2.ListModelsResponse(models=rest[:size])
        if len(rest) > size:
            response.next_page_token = paging.encode_token(rest[size - 1].name)
        return response

    async def DeleteModel(
        self, request: model_pb2.DeleteModelRequest, context: "Context"
    ) -> model_pb2.DeleteModelResponse:
        await self._store.delete(fields.text("name", request.name, least=1, most=_NAME_CHARACTERS))
        return model_pb2.DeleteModelResponse()

    async def _state(self) -> tuple[dict[str, list[WorkerState]], dict[str, bytes], dict[str, int]]:
        return await self._store.workers(), await self._store.fleet_reports(), await self._store.queued()


def read_manifest(value: Struct) -> manifest.AIModel:
    """Checks a manifest; the error names the field, such as `manifest.spec.replicas`."""
    try:
        return manifest.from_object(_integers(MessageToDict(value)))
    except msgspec.ValidationError as problem:
        message, _, path = str(problem).partition(" - at `$")
        path = path.rstrip("`")
        if unknown := _UNKNOWN.fullmatch(message):
            known = manifest.known_fields(path.removeprefix("."))
            raise fields.unknown(f"manifest{path}.{unknown[1]}", unknown[1], known, "field") from None
        raise fields.invalid(f"manifest{path}", message) from None
    except (ValueError, RecursionError):
        raise fields.invalid("manifest", "is no manifest") from None


def _integers(value: object) -> object:
    """A Struct knows only doubles: whole numbers become integers again."""
    if isinstance(value, dict):
        return {key: _integers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_integers(each) for each in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    return value


def _model(
    token: str,
    applied: Applied,
    workers: dict[str, list[WorkerState]],
    fleet_reports: dict[str, bytes],
    queued: dict[str, int],
) -> Model:
    try:
        known = manifest.from_json(applied.manifest)
    except (msgspec.MsgspecError, ValueError):
        message = "Its manifest cannot be read; apply it again."
        return Model(name=token, phase=ModelPhase.MODEL_PHASE_FAILING, message=message, revision=applied.revision)
    content = Struct()
    content.update(json.loads(applied.manifest))
    serving = sorted((each for each in workers.get(known.name, []) if not each.draining), key=lambda w: w.worker_id)
    phase, message = _phase(known, serving, fleet_reports.get(token))
    return Model(
        name=known.name,
        manifest=content,
        revision=applied.revision,
        phase=phase,
        workers=[_worker(worker) for worker in serving],
        message=message,
        queued=queued.get(names.task_consumer(known.name), 0),
        update_time=_timestamp(applied.update_time),
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def _worker(worker: WorkerState) -> ModelWorker:
    return ModelWorker(
        id=worker.worker_id,
        address=worker.address,
        pid=worker.pid,
        slots_total=worker.slots_total,
        slots_free=worker.slots_free,
    )


def _phase(
    model: manifest.AIModel, serving: list[WorkerState], fleet_report: bytes | None
) -> tuple[ModelPhase.ValueType, str]:
    """Ready with a serving worker; otherwise the phase that fleet reports, or that follows from the manifest."""
    if serving:
        return ModelPhase.MODEL_PHASE_READY, ""
    if model.spec.replicas == 0:
        return ModelPhase.MODEL_PHASE_STOPPED, "It asks for no replicas."
    try:
        report = json.loads(fleet_report or b"{}")
        phase, message = str(report.get("phase", "")), str(report.get("message", ""))
    except (ValueError, AttributeError, RecursionError):
        phase, message = "", ""
    if phase.upper().endswith("FAILING"):
        return ModelPhase.MODEL_PHASE_FAILING, message or "Its workers end again and again."
    return ModelPhase.MODEL_PHASE_STARTING, message or "No worker serves it yet."
