"""Fleet: stores the given manifests in KV `models`, and keeps workers running for all that the bucket holds."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

import nats.errors

from common import names
from common.lifecycle import forever
from common.manifest import AIModel
from fleet.controller import Controller, OnReport
from fleet.pools import PoolReport, WorkerFactory
from fleet.settings import FleetSettings
from messaging.bus import Bus, connect_bus


def _ignore(reports: Mapping[str, PoolReport]) -> None:
    """For callers that read reports from KV `fleet`, or not at all."""


async def main(
    settings: FleetSettings,
    stop: asyncio.Event,
    factory: WorkerFactory,
    models: Sequence[AIModel] = (),
    on_report: OnReport = _ignore,
) -> None:
    """Runs until `stop` is set, and then until the last worker has ended or its grace is over."""
    controller = Controller(factory, on_report, settings.drain_grace_seconds)
    async with connect_bus(settings.nats_url, "fleet") as bus:
        await bus.ensure_streams()
        await store(bus, models)
        async with asyncio.TaskGroup() as pools:
            tasks = {
                "fleet watches models": partial(controller.watch, bus, pools),
                "fleet reports": partial(controller.report, bus),
            }
            async with forever(tasks):
                await stop.wait()
            controller.end()


async def store(bus: Bus, models: Sequence[AIModel]) -> None:
    """Writes manifests to KV `models`; one that is there already gets no new revision. Raises what NATS raises."""
    bucket = await bus.js.key_value(names.KV_MODELS)
    for model in models:
        key, value = names.token(model.name), model.to_json()
        try:
            known = (await bucket.get(key)).value
        except nats.errors.Error:
            known = None
        if known != value:
            await bucket.put(key, value)
