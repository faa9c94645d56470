"""Follows the AIModels in KV `models` and keeps their workers running here."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress

import msgspec
import nats.errors

from common import manifest, names
from common.manifest import AIModel
from common.tasks import not_cancelled
from fleet.pools import Phase, Pool, PoolReport, Workplace
from fleet.settings import FleetSettings
from messaging.bus import Bus, Change, connect_bus

logger = logging.getLogger(__name__)

_REPORT_EVERY_SECONDS = 5.0  # also when nothing changed: the bucket is in memory, a restarted NATS has lost it
_RETRY_SECONDS = 0.5


class Fleet:
    """The pools of all models."""

    def __init__(self, workplace: Workplace, on_report: Callable[[Mapping[str, PoolReport]], None]) -> None:
        self._workplace, self._on_report = workplace, on_report
        self._pools: dict[str, Pool] = {}
        self._invalid: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._stopping = False

    def reports(self) -> dict[str, PoolReport]:
        """How each model fares, by KV key."""
        invalid = {key: PoolReport(Phase.FAILING, why) for key, why in self._invalid.items()}
        return invalid | {key: pool.report() for key, pool in self._pools.items()}

    async def follow(self, bus: Bus, tasks: asyncio.TaskGroup, settings: FleetSettings) -> None:
        """Makes every change of the bucket so, for ever."""
        async for change in bus.watch(names.KV_MODELS):
            if change is not None and not self._stopping:
                self._apply(change, tasks, settings.drain_grace_seconds)

    def _apply(self, change: Change, tasks: asyncio.TaskGroup, grace_seconds: float) -> None:
        self._invalid.pop(change.key, None)
        self._changed.set()
        pool = self._pools.get(change.key)
        if change.value is None:
            if pool is not None:
                pool.end(grace_seconds)
            return
        try:
            model = manifest.from_json(change.value)
        except (
            msgspec.MsgspecError,
            ValueError,
        ) as problem:  # written by something newer or by hand: what runs goes on
            logger.warning("manifest refused", extra={"model_key": change.key, "problem": str(problem)})
            self._invalid[change.key] = f"the manifest cannot be used: {problem}"
            return
        if pool is not None:
            pool.want(model, change.revision)
            return
        pool = Pool(model, change.revision, self._workplace, self._changed.set)
        self._pools[change.key] = pool
        tasks.create_task(self._run(change.key, pool, grace_seconds), name=f"pool {model.name}")

    async def _run(self, key: str, pool: Pool, grace_seconds: float) -> None:
        while not pool.ended:  # it may be wanted again while it ends
            await pool.run(grace_seconds)
        del self._pools[key]
        self._changed.set()

    def end(self, grace_seconds: float) -> None:
        """Every worker finishes what it holds and ends."""
        self._stopping = True
        for pool in self._pools.values():
            pool.end(grace_seconds)

    async def report(self, bus: Bus) -> None:
        """Tells KV `fleet` and the observer how the models fare, for ever."""
        told: dict[str, PoolReport] = {}
        reconnects = bus.reconnects
        while not_cancelled():
            self._changed.clear()
            now = self.reports()
            self._on_report(now)
            pause_seconds = _REPORT_EVERY_SECONDS
            try:
                if reconnects != bus.reconnects:
                    reconnects, told = bus.reconnects, {}
                    await bus.ensure_streams()
                told = await _tell(bus, told, now)
            except (nats.errors.Error, TimeoutError) as problem:
                logger.warning("fleet state not told yet", extra={"problem": repr(problem)})
                told, pause_seconds = {}, _RETRY_SECONDS
            # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds):
                    await self._changed.wait()


async def _tell(bus: Bus, told: Mapping[str, PoolReport], now: Mapping[str, PoolReport]) -> dict[str, PoolReport]:
    if told == now:
        return dict(now)
    bucket = await bus.js.key_value(names.KV_FLEET)
    for key, report in now.items():
        if told.get(key) != report:
            await bucket.put(key, report.to_json())
    for key in told.keys() - now.keys():
        await bucket.delete(key)
    return dict(now)


async def apply(bus: Bus, models: Sequence[AIModel]) -> None:
    """Writes manifests; one that is there already changes nothing."""
    bucket = await bus.js.key_value(names.KV_MODELS)
    for model in models:
        key, value = names.token(model.name), model.to_json()
        try:
            known = (await bucket.get(key)).value
        except nats.errors.Error:
            known = None
        if known != value:
            await bucket.put(key, value)


async def main(
    settings: FleetSettings,
    stop: asyncio.Event,
    workplace: Workplace,
    models: Sequence[AIModel] = (),
    on_report: Callable[[Mapping[str, PoolReport]], None] = lambda reports: None,
) -> None:
    """Runs until told to stop, and then until the last worker has finished or its grace is over."""
    fleet = Fleet(workplace, on_report)
    async with AsyncExitStack() as resources:
        bus = await resources.enter_async_context(connect_bus(settings.nats_url, "fleet"))
        await bus.ensure_streams()
        await apply(bus, models)
        async with asyncio.TaskGroup() as pools:
            async with asyncio.TaskGroup() as eternal:
                follower = eternal.create_task(fleet.follow(bus, pools, settings), name="fleet follows models")
                reporter = eternal.create_task(fleet.report(bus), name="fleet reports")
                await stop.wait()
                follower.cancel()
                reporter.cancel()
            fleet.end(settings.drain_grace_seconds)
