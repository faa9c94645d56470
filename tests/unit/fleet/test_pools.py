"""The workers of one model, with workers that only pretend."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from common.manifest import AIModel, from_object
from fleet.pools import Phase, Pool, replicas_of, version_of


def a_model(**spec: object) -> AIModel:
    return from_object(
        {
            "apiVersion": "model.youxam.com/v1alpha1",
            "kind": "AIModel",
            "metadata": {"name": "m"},
            "spec": {"type": "local", "model": "x", "engine": "synthetic", **spec},
        }
    )


class PretendWorker:
    def __init__(self, model: AIModel, revision: int, number: int, on_change: Callable[[], None]) -> None:
        self.model, self.revision, self.number = model, revision, number
        self.serving = self.failing = False
        self.message = ""
        self.grace_seconds: float | None = None
        self._on_change, self._ended = on_change, asyncio.Event()

    def becomes(self, *, serving: bool, message: str = "") -> None:
        self.serving, self.failing, self.message = serving, bool(message), message
        self._on_change()

    async def keep(self) -> None:
        await self._ended.wait()

    async def stop(self, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self._ended.set()


class PretendFactory:
    def __init__(self) -> None:
        self.made: list[PretendWorker] = []

    def worker(self, model: AIModel, revision: int, number: int, on_change: Callable[[], None]) -> PretendWorker:
        self.made.append(PretendWorker(model, revision, number, on_change))
        return self.made[-1]

    @property
    def running(self) -> list[PretendWorker]:
        return [worker for worker in self.made if worker.grace_seconds is None]


@asynccontextmanager
async def a_pool(model: AIModel) -> AsyncIterator[tuple[Pool, PretendFactory]]:
    factory = PretendFactory()
    pool = Pool(model, 1, factory, lambda: None)
    running = asyncio.create_task(pool.run(5.0))
    await settle()
    yield pool, factory
    pool.end(5.0)
    await asyncio.wait_for(running, 60)
    assert pool.ended
    assert not factory.running


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_as_many_workers_as_replicas() -> None:
    async with a_pool(a_model(replicas=3)) as (pool, factory):
        assert [worker.number for worker in factory.running] == [0, 1, 2]
        pool.update(a_model(replicas=1), 2)
        await settle()
        assert [worker.number for worker in factory.running] == [0]
        pool.update(a_model(replicas=2), 3)
        await settle()
        assert len(factory.running) == 2


async def test_scaling_replaces_nobody() -> None:
    async with a_pool(a_model(replicas=1)) as (pool, factory):
        factory.made[0].becomes(serving=True)
        pool.update(a_model(replicas=2, labels={"a": "b"}), 2)
        await settle()
        assert factory.made[0] in factory.running
        assert len(factory.made) == 2


async def test_a_changed_manifest_starts_new_workers_before_the_old_end() -> None:
    async with a_pool(a_model()) as (pool, factory):
        old = factory.made[0]
        old.becomes(serving=True)
        pool.update(a_model(contextLength=128), 2)
        await settle()
        new = factory.made[1]
        assert (old.grace_seconds, new.revision, new.number) == (None, 2, 1)
        new.becomes(serving=True)
        await settle()
        assert old.grace_seconds == 5.0
        assert factory.running == [new]


async def test_a_new_version_that_fails_leaves_the_old_one_serving() -> None:
    async with a_pool(a_model()) as (pool, factory):
        factory.made[0].becomes(serving=True)
        pool.update(a_model(contextLength=128), 2)
        await settle()
        factory.made[1].becomes(serving=False, message="no such file")
        await settle()
        assert factory.made[0].grace_seconds is None
        assert pool.report().phase is Phase.READY
        assert pool.report().message == "no such file"
        pool.update(a_model(contextLength=256), 3)
        await settle()
        assert factory.made[1].grace_seconds is not None  # it never served, so nothing is lost
        assert factory.made[0].grace_seconds is None


async def test_phases_follow_the_workers() -> None:
    async with a_pool(a_model()) as (pool, factory):
        assert pool.report().phase is Phase.STARTING
        factory.made[0].becomes(serving=False, message="crashed")
        assert (pool.report().phase, pool.report().message) == (Phase.FAILING, "crashed")
        factory.made[0].becomes(serving=True)
        assert (pool.report().phase, pool.report().message) == (Phase.READY, "")
        pool.update(a_model(replicas=0), 2)
        await settle()
        assert pool.report().phase is Phase.STOPPED
        assert not factory.running


async def test_a_model_wanted_again_while_it_ends_comes_back() -> None:
    async with a_pool(a_model()) as (pool, factory):
        pool.end(1.0)
        pool.update(a_model(), 2)
        await settle()
        assert len(factory.running) == 1


def test_a_rented_model_needs_one_worker_at_most() -> None:
    rented = msgspec.structs.replace(a_model(), spec=msgspec.structs.replace(a_model().spec, type="remote", replicas=5))
    assert replicas_of(rented) == 1
    assert replicas_of(a_model(replicas=5)) == 5


def test_only_what_a_worker_reads_makes_a_new_version() -> None:
    assert version_of(a_model(replicas=1)) == version_of(a_model(replicas=4, image="i", labels={"a": "b"}))
    assert version_of(a_model()) != version_of(a_model(env={"A": "B"}))
    assert version_of(a_model()) != version_of(a_model(maxProcessNum=7))
