"""Models over the real admin API and a real JetStream."""

import json
import uuid

import pytest
from google.protobuf.struct_pb2 import Struct
from uplion.control.v1.model_pb2 import ApplyModelRequest, DeleteModelRequest, ListModelsRequest, ModelPhase
from uplion.dispatch.v1.ticket_pb2 import Ticket
from uplion.dispatch.v1.worker_state_pb2 import WorkerState

from common import names
from common.errors import Reason
from tests.kit.until import until


def manifest(name, **spec):
    value = Struct()
    value.update(
        {
            "apiVersion": "model.youxam.com/v1alpha1",
            "kind": "AIModel",
            "metadata": {"name": name},
            "spec": {"type": "local", "model": "TinyLlama-1.1B", **spec},
        }
    )
    return value


@pytest.fixture
def name():
    return f"m-{uuid.uuid4().hex[:8]}.v1"


async def apply(control, name, **spec):
    response = await control.call(control.models.ApplyModel, ApplyModelRequest(manifest=manifest(name, **spec)))
    return response.model


async def listed(control, name):
    response = await control.call(control.models.ListModels, ListModelsRequest())
    return next((model for model in response.models if model.name == name), None)


async def test_an_applied_model_has_its_queue_and_is_written_where_routers_look(control, bus, name):
    model = await apply(control, name, replicas=3, synthetic={"tokensPerSecond": 50})
    entry = await (await bus.js.key_value(names.KV_MODELS)).get(names.token(name))
    stored = json.loads(entry.value)
    assert (stored["metadata"]["name"], stored["spec"]["replicas"]) == (name, 3)
    assert (model.name, model.revision) == (name, entry.revision)
    assert model.phase == ModelPhase.MODEL_PHASE_STARTING
    assert model.manifest["spec"]["replicas"] == 3
    assert model.update_time.seconds > 1_700_000_000
    consumer = await bus.js.consumer_info(names.STREAM_TASKS, names.task_consumer(name))
    assert consumer.config.filter_subject == names.task_subject(name)


async def test_the_same_manifest_twice_changes_nothing_and_another_one_does(control, name):
    first, same = await apply(control, name), await apply(control, name)
    other = await apply(control, name, replicas=2)
    assert first.revision == same.revision < other.revision
    assert first.update_time == same.update_time


async def test_a_list_joins_manifest_workers_and_queue(control, bus, name):
    await apply(control, name)
    worker = WorkerState(worker_id=f"w-{name}", address="127.0.0.1:7", model=name, slots_total=8, slots_free=5, pid=3)
    leaving = WorkerState(worker_id=f"x-{name}", model=name, draining=True)
    bucket = await bus.js.key_value(names.KV_WORKERS)
    for state in (worker, leaving):
        await bucket.put(names.token(state.worker_id), state.SerializeToString())
    for attempt in range(2):
        await bus.publish(names.task_subject(name), Ticket(request_id=name, attempt=attempt).SerializeToString())

    async def with_its_queue():  # the server counts what waits a moment after it took it
        model = await listed(control, name)
        return model if model.queued == 2 else None

    model = await until(with_its_queue)
    assert (model.phase, model.message) == (ModelPhase.MODEL_PHASE_READY, "")
    assert [(w.id, w.address, w.pid, w.slots_total, w.slots_free) for w in model.workers] == [
        (worker.worker_id, "127.0.0.1:7", 3, 8, 5)
    ]


async def test_without_workers_fleet_says_why(control, bus, name):
    await apply(control, name)
    bucket = await bus.js.key_value(names.KV_FLEET)
    await bucket.put(names.token(name), json.dumps({"phase": "failing", "message": "out of memory"}).encode())
    model = await listed(control, name)
    assert (model.phase, model.message) == (ModelPhase.MODEL_PHASE_FAILING, "out of memory")
    stopped = await apply(control, name, replicas=0)
    assert stopped.phase == ModelPhase.MODEL_PHASE_STOPPED


async def test_a_deleted_model_is_gone_and_can_come_back(control, name):
    before = await apply(control, name)
    await control.call(control.models.DeleteModel, DeleteModelRequest(name=name))
    assert await listed(control, name) is None
    refused = await control.refusal(control.models.DeleteModel, DeleteModelRequest(name=name))
    assert (refused.reason, refused.param) == (Reason.NOT_FOUND, "name")
    again = await apply(control, name)
    assert again.revision > before.revision
    assert (await listed(control, name)).revision == again.revision


async def test_pages_are_sorted_by_name(control):
    prefix = f"p{uuid.uuid4().hex[:8]}"
    wanted = [f"{prefix}-{letter}" for letter in "abc"]
    for each in reversed(wanted):
        await apply(control, each)
    found, token = [], ""
    while True:
        page = await control.call(control.models.ListModels, ListModelsRequest(page_size=2, page_token=token))
        assert len(page.models) <= 2
        found += [model.name for model in page.models]
        token = page.next_page_token
        if not token:
            break
    assert found == sorted(found)
    assert [each for each in found if each.startswith(prefix)] == wanted


async def test_every_wrong_field_is_named(control, name):
    unknown = manifest(name)
    unknown["metadata"] = {"name": "Not A Name"}
    cases = {
        "manifest": ApplyModelRequest(),
        "manifest.spec.replicas": ApplyModelRequest(manifest=manifest(name, replicas=1.5)),
        "manifest.spec.type": ApplyModelRequest(manifest=manifest(name, type="cloud")),
        "manifest.spec.replica": ApplyModelRequest(manifest=manifest(name, replica=1)),
        "manifest.spec.engine": ApplyModelRequest(manifest=manifest(name, type="remote", engine="transformers")),
        "manifest.metadata.name": ApplyModelRequest(manifest=unknown),
    }
    for param, request in cases.items():
        refused = await control.refusal(control.models.ApplyModel, request)
        assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, param)
    refused = await control.refusal(control.models.DeleteModel, DeleteModelRequest())
    assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, "name")
    refused = await control.refusal(control.models.ListModels, ListModelsRequest(page_token="\u00e9"))
    assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, "page_token")
    assert await listed(control, name) is None


async def test_a_manifest_that_cannot_be_read_hides_no_other(control, bus, name):
    await apply(control, name)
    broken = f"broken-{uuid.uuid4().hex[:8]}"
    bucket = await bus.js.key_value(names.KV_MODELS)
    await bucket.put(names.token(broken), b"{not json")
    assert (await listed(control, broken)).phase == ModelPhase.MODEL_PHASE_FAILING
    assert (await listed(control, name)).name == name
    await bucket.delete(names.token(broken))
