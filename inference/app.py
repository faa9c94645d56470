"""A worker: one model's engine, the slots for its tickets, and the gRPC service for their runs."""

import asyncio
import gc
import logging
import uuid
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from functools import partial

import nats.errors
from uplion.dispatch.v1.worker_service_pb2_grpc import add_WorkerServiceServicer_to_server

from common import manifest
from common.lifecycle import Ready, forever
from common.manifest import AIModel
from inference.engines.engine import Engine
from inference.engines.registry import engine_for
from inference.heartbeat import Heartbeat, worker_state
from inference.service import RunService
from inference.settings import InferenceSettings
from inference.tickets.intake import TicketIntake
from inference.tickets.jetstream_source import JetStreamSource
from inference.tickets.offers import Offers
from inference.tickets.receipts import Receipts
from inference.tickets.slots import SlotManager
from inference.usage_events import UsageRecorder
from messaging.bus import Bus, connect_bus
from messaging.inbox import Inbox
from messaging.outbox import Outbox
from rpc.server import grpc_server

logger = logging.getLogger(__name__)

_SETTLE_SECONDS = 10.0  # for usage events and acknowledgements, once nothing runs
_EVENTS_IN_MEMORY = 100_000  # far more than slots: those bound it
_HARD_STOP_SECONDS = 1.0  # for runs that outlived the drain's grace


class EngineError(Exception):
    """The engine has failed and cannot serve any more: the process ends, to be started again."""


async def main(settings: InferenceSettings, stop: asyncio.Event, ready: Ready) -> None:
    """Serves one model until `stop` is set; then finishes what runs. Raises EngineError when the engine fails."""
    model = the_model(settings)
    gc.disable()  # importing a model's modules makes 400,000 objects that stay: collecting meanwhile is 1.4 s of 5.3
    engine = engine_for(model, settings)
    try:
        if await _started(engine, stop):
            gc.freeze()
            gc.enable()
            async with connect_bus(settings.nats_url, "inference") as bus:
                await _serve(settings, model, engine, bus, stop, ready)
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
    """Whether the engine is ready; False when `stop` was set before that."""
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(engine.start(), name="engine start")
        stopping = tasks.create_task(stop.wait(), name="stop before start")
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        starting.cancel()  # does nothing to a finished one
    return not starting.cancelled()


async def _serve(
    settings: InferenceSettings, model: AIModel, engine: Engine, bus: Bus, stop: asyncio.Event, ready: Ready
) -> None:
    await bus.ensure_streams()
    worker_id = uuid.uuid4().hex
    usage = UsageRecorder(model=model.name, revision=settings.revision, provider=engine.provider)
    async with (
        Inbox.open(bus) as inbox,
        Outbox.open(
            bus, inbox, settings.spool_dir, spool_bytes=settings.spool_bytes, capacity=_EVENTS_IN_MEMORY
        ) as outbox,
        JetStreamSource.open(bus, inbox, model.name, settings.lane) as source,
        forever({"usage outbox": outbox.run}),
        AsyncExitStack() as until_settled,
    ):
        slots = SlotManager(model.spec.maxProcessNum, outbox)
        offers = Offers(bus.send, inbox, worker_id=worker_id, receipt_subject=bus.new_inbox())
        receipts = await until_settled.enter_async_context(Receipts.open(bus, slots, offers))
        service = RunService(engine, slots, usage, receipts)
        async with grpc_server(
            settings.listen,
            lambda server: add_WorkerServiceServicer_to_server(service, server),
            grace_seconds=_HARD_STOP_SECONDS,
        ) as bound:
            address = settings.advertise or bound
            offers.address = address
            intake = TicketIntake(source, slots, offers, usage, receipts)
            state = worker_state(model, engine, worker_id=worker_id, address=address, revision=settings.revision)
            heartbeat = Heartbeat(bus, state, engine, slots)
            await heartbeat.publish()
            await until_settled.enter_async_context(forever({"ticket sweep": intake.sweep}))
            # The heartbeat ends before the entry is deleted: none may come after that.
            async with forever({"heartbeat": partial(heartbeat.run, outbox.turned)}):
                async with forever({"ticket intake": intake.run}):
                    logger.info("registered", extra={"model": model.name, "worker_id": worker_id})
                    ready(address)
                    problem = await _stopped_or_failed(engine, stop)
                    slots.draining = True
                await _unless_away(heartbeat.publish())
                await intake.finish()
                await slots.idle(settings.drain_grace_seconds)
        await _unless_away(heartbeat.withdraw())
        await slots.settled(_SETTLE_SECONDS)
    if problem is not None:
        raise EngineError(str(problem)) from problem


async def _unless_away(call: Awaitable[None]) -> None:
    """A heartbeat that NATS does not take does not delay the end."""
    try:
        await call
    except (nats.errors.Error, TimeoutError, OSError) as problem:
        logger.warning("NATS was away while draining", extra={"problem": repr(problem)})


async def _stopped_or_failed(engine: Engine, stop: asyncio.Event) -> Exception | None:
    """Waits for either; returns why the engine cannot go on, or None when `stop` was set."""
    async with asyncio.TaskGroup() as tasks:
        failing = tasks.create_task(engine.failure(), name="engine failure")
        stopping = tasks.create_task(stop.wait(), name="stop")
        await asyncio.wait({failing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        failing.cancel()
        stopping.cancel()
    return None if failing.cancelled() else failing.result()
