"""The controller of a fleet: watches manifests in KV `models`, runs a pool for each, and reports in KV `fleet`."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec
import nats.errors

from common import manifest, names
from common.lifecycle import not_cancelled
from fleet.pools import Phase, Pool, PoolReport, WorkerFactory
from messaging.bus import Bus, Change
from messaging.connection import poison

logger = logging.getLogger(__name__)
_poison = poison(names.KV_MODELS)

_REPORT_EVERY_SECONDS = 5.0  # also when nothing changed: a restarted NATS has lost the bucket, which is in memory
_RETRY_SECONDS = 0.5

OnReport = Callable[[Mapping[str, PoolReport]], None]


class Controller:
    """Runs the pools of all models. `watch` and `report` are its tasks."""

    def __init__(self, factory: WorkerFactory, on_report: OnReport, drain_grace_seconds: float) -> None:
        self._factory, self._on_report = factory, on_report
        self._grace_seconds = drain_grace_seconds
        self._pools: dict[str, Pool] = {}
        self._invalid: dict[str, str] = {}  # KV key -> why the manifest cannot be used
        self._changed = asyncio.Event()
        self._stopping = False

    def reports(self) -> dict[str, PoolReport]:
        """The state of each model, by KV key."""
        invalid = {key: PoolReport(Phase.FAILING, why) for key, why in self._invalid.items()}
        return invalid | {key: pool.report() for key, pool in self._pools.items()}

    async def watch(self, bus: Bus, tasks: asyncio.TaskGroup) -> None:
        """Applies every change of the bucket, for ever; pools run in `tasks`."""
        async for change in bus.watch(names.KV_MODELS, known=[*self._pools, *self._invalid]):
            if change is not None and not self._stopping:
                with _poison:
                    self._apply(change, tasks)

    def end(self) -> None:
        """Stops every worker; running requests finish within the grace."""
        self._stopping = True
        for pool in self._pools.values():
            pool.end(self._grace_seconds)

    async def report(self, bus: Bus) -> None:
        """Writes the state of each model to KV `fleet` and gives it to the observer, for ever."""
        written: dict[str, PoolReport] = {}
        reconnects = bus.reconnects
        while not_cancelled():
            self._changed.clear()
            reports = self.reports()
            self._on_report(reports)
            pause_seconds = _REPORT_EVERY_SECONDS
            try:
                if reconnects != bus.reconnects:
                    reconnects, written = bus.reconnects, {}
                    await bus.ensure_streams()
                written = await _write(bus, written, reports)
            except (nats.errors.Error, TimeoutError) as problem:
                logger.warning("fleet state not written yet", extra={"problem": repr(problem)})
                written, pause_seconds = {}, _RETRY_SECONDS
            # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds):
                    await self._changed.wait()

    def _apply(self, change: Change, tasks: asyncio.TaskGroup) -> None:
        self._invalid.pop(change.key, None)
        self._changed.set()
        pool = self._pools.get(change.key)
        if change.value is None:
            if pool is not None:
                pool.end(self._grace_seconds)
            return
        try:
            model = manifest.from_entry(change.key, change.value)
        except (msgspec.MsgspecError, ValueError) as problem:  # of a newer version, or edited by hand: workers stay
            logger.warning("manifest refused", extra={"model_key": change.key, "problem": str(problem)})
            self._invalid[change.key] = f"the manifest cannot be used: {problem}"
            return
        if pool is not None:
            pool.update(model, change.revision)
            return
        pool = Pool(model, change.revision, self._factory, self._changed.set)
        self._pools[change.key] = pool
        tasks.create_task(self._run(change.key, pool), name=f"pool {model.name}")

    async def _run(self, key: str, pool: Pool) -> None:
        while not pool.ended:  # it may get a new manifest while it ends
            await pool.run(self._grace_seconds)
        del self._pools[key]
        self._changed.set()


async def _write(
    bus: Bus, written: Mapping[str, PoolReport], reports: Mapping[str, PoolReport]
) -> dict[str, PoolReport]:
    """Writes what differs from `written`; returns what the bucket holds now. Raises what NATS raises."""
    if written == reports:
        return dict(reports)
    bucket = await bus.js.key_value(names.KV_FLEET)
    for key, report in reports.items():
        if written.get(key) != report:
            await bucket.put(key, report.to_json())
    for key in written.keys() - reports.keys():
        await bucket.delete(key)
    return dict(reports)
