"""A worker: an engine, a desk for tickets, a service for runs, and a meter."""

import asyncio
import gc
import logging
import uuid
from collections.abc import Awaitable

import nats.errors
from uplion.dispatch.v1.worker_service_pb2_grpc import add_WorkerServiceServicer_to_server

from common import manifest, names
from common.lifecycle import announce_ready, grpc_server
from common.manifest import AIModel
from common.tasks import not_cancelled
from inference.engines.engine import Engine
from inference.engines.registry import engine_for
from inference.heartbeat import Heartbeat
from inference.service import RunService
from inference.settings import InferenceSettings
from inference.tickets.settlement import Settler
from inference.tickets.slots import SlotManager
from inference.usage_events import UsageRecorder
from messaging.bus import Bus, connect_bus
from messaging.inbox import Inbox
from messaging.outbox import Outbox
from messaging.pull import Pull

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 10.0
_EVENTS_IN_MEMORY = 100_000  # far more than slots: those bound it
_HARD_STOP_SECONDS = 1.0  # for runs that outlived the drain's grace
_SWEEP_SECONDS = 0.25
_PULL_SECONDS = 1.0


class EngineError(Exception):
    """The engine cannot go on; the process ends, and whoever keeps it starts another."""


async def main(settings: InferenceSettings, stop: asyncio.Event) -> None:
    """Serves one model until told to stop; then finishes what runs."""
    model = the_model(settings)
    gc.disable()  # importing a model's modules makes 400,000 objects that stay: collecting meanwhile is 1.4 s of 5.3
    engine = engine_for(model, settings)
    try:
        if await _started(engine, stop):
            gc.freeze()
            gc.enable()
            async with (
                connect_bus(settings.nats_url, "inference") as bus,
                Inbox.open(bus.nc) as inbox,
                Outbox.open(
                    bus.nc, inbox, settings.spool_dir, spool_bytes=settings.spool_bytes, capacity=_EVENTS_IN_MEMORY
                ) as outbox,
            ):
                await _serve(settings, model, engine, bus, inbox, outbox, stop)
    finally:
        gc.enable()
        await engine.close()


def the_model(settings: InferenceSettings) -> AIModel:
    """The one model of the manifest file."""
    models = manifest.load(settings.manifest)
    if len(models) != 1:
        raise manifest.ManifestError([f"{settings.manifest}: a worker serves one AIModel, and here are {len(models)}"])
    return models[0]


async def _started(engine: Engine, stop: asyncio.Event) -> bool:
    """Whether the engine is ready; False when it was told to stop before that."""
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(engine.start(), name="engine start")
        stopping = tasks.create_task(stop.wait(), name="stop before start")
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        starting.cancel()  # does nothing to a finished one
    return not starting.cancelled()


async def _serve(
    settings: InferenceSettings,
    model: AIModel,
    engine: Engine,
    bus: Bus,
    inbox: Inbox,
    outbox: Outbox,
    stop: asyncio.Event,
) -> None:
    await bus.ensure_streams()
    consumer = await bus.ensure_task_consumer(model.name, settings.lane)
    usage = UsageRecorder(model=model.name, revision=settings.revision, provider=engine.provider)
    worker_id = uuid.uuid4().hex
    slots = model.spec.maxProcessNum
    desk = SlotManager(bus.nc, inbox, usage, lambda: outbox.blocked, worker_id=worker_id, slots=slots)
    service = RunService(engine, desk, usage)
    async with asyncio.TaskGroup() as tasks:
        async with (
            Pull(bus, names.STREAM_TASKS, consumer) as pull,
            grpc_server(
                "inference",
                settings.listen,
                lambda server: add_WorkerServiceServicer_to_server(service, server),
                grace_seconds=_HARD_STOP_SECONDS,
                announce=False,
            ) as bound,
        ):
            address = settings.advertise or bound
            meter = Settler(bus.nc, inbox, outbox, lambda: pull.want(desk.free))
            desk.open(address, meter)
            presence = Heartbeat(
                bus, model, engine, desk, worker_id=worker_id, address=address, revision=settings.revision
            )
            await presence.announce()
            eternal = [
                tasks.create_task(outbox.run(), name="send usage"),
                tasks.create_task(meter.run(), name="meter"),
                tasks.create_task(_sweep(desk), name="ticket sweep"),
            ]
            announcing = tasks.create_task(presence.run(outbox.turned), name="presence")
            pulling = tasks.create_task(_pull(pull, desk), name="ticket pull")
            announce_ready(f"inference {model.name}", address)
            problem = await _stopped_or_failed(engine, stop)
            desk.draining = True
            pulling.cancel()
            await _quietly(presence.announce())
            for message in await pull.finish():
                await _quietly(desk.take(message))  # a draining desk gives every ticket back
            await desk.empty(settings.drain_grace_seconds)
        announcing.cancel()
        await asyncio.wait([announcing])  # what it is about to say must not come after
        await _quietly(presence.withdraw())
        await meter.flush(_FLUSH_SECONDS)
        for task in eternal:
            task.cancel()
    if problem is not None:
        raise EngineError(str(problem)) from problem


async def _quietly(saying: Awaitable[None]) -> None:
    """What is said while leaving must not keep us from leaving."""
    try:
        await saying
    except (nats.errors.Error, TimeoutError, OSError) as problem:
        logger.warning("NATS was away while draining", extra={"problem": repr(problem)})


async def _stopped_or_failed(engine: Engine, stop: asyncio.Event) -> Exception | None:
    """Waits for either; returns why the engine cannot go on, or None when told to stop."""
    async with asyncio.TaskGroup() as tasks:
        failing = tasks.create_task(engine.failure(), name="engine failure")
        stopping = tasks.create_task(stop.wait(), name="stop")
        await asyncio.wait({failing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        failing.cancel()
        stopping.cancel()
    return None if failing.cancelled() else failing.result()


async def _pull(pull: Pull, desk: SlotManager) -> None:
    """Takes tickets as long as there are free slots."""
    while not_cancelled():
        await pull.want(desk.free)
        message = await pull.next(_PULL_SECONDS)
        if message is not None:
            await desk.take(message)


async def _sweep(desk: SlotManager) -> None:
    while not_cancelled():
        await asyncio.sleep(_SWEEP_SECONDS)
        try:
            await desk.sweep()
        except (nats.errors.Error, OSError) as problem:
            logger.warning("tickets could not be renewed", extra={"problem": repr(problem)})
