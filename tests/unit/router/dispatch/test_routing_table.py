"""The routing table follows the buckets and is replaced as a whole."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from uplion.dispatch.v1.worker_state_pb2 import (
    CAPABILITY_CHAT,
    CAPABILITY_RESUME,
    WorkerState,
)

from common.errors import Reason, UplionError
from common.names import KV_MODELS
from common.operations import Capability
from messaging.bus import Change
from router.dispatch.routing_table import RoutingTable

MANIFEST = (
    b'{"apiVersion":"model.youxam.com/v1alpha1","kind":"AIModel","metadata":{"name":"m"},'
    b'"spec":{"type":"local","model":"x"}}'
)


class Buckets:
    """KV by hand."""

    def __init__(self) -> None:
        self.models: asyncio.Queue[Change | None] = asyncio.Queue()
        self.workers: asyncio.Queue[Change | None] = asyncio.Queue()

    async def watch(
        self, bucket: str, *, ttl_seconds: float | None = None, known: Iterable[str] = ()
    ) -> AsyncIterator[Change | None]:
        queue = self.models if bucket == KV_MODELS else self.workers
        while True:
            yield await queue.get()
            queue.task_done()

    async def told(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


def worker(name: str, **fields: object) -> Change:
    values = {"worker_id": name, "address": f"{name}:1", "model": "m", "capabilities": [CAPABILITY_CHAT]} | fields
    return Change(name, WorkerState(**values).SerializeToString(), 1)  # type: ignore[arg-type]


@pytest.fixture
async def table() -> AsyncIterator[tuple[RoutingTable, Buckets]]:
    buckets = Buckets()
    models = RoutingTable(buckets)
    task = asyncio.create_task(models.run())
    yield models, buckets
    task.cancel()
    await asyncio.wait([task])


async def test_it_is_ready_once_both_buckets_were_read(table: tuple[RoutingTable, Buckets]) -> None:
    models, buckets = table
    buckets.models.put_nowait(Change("m", MANIFEST, 1))
    buckets.models.put_nowait(None)
    await buckets.told()
    assert not models.ready.is_set()
    buckets.workers.put_nowait(None)
    await buckets.told()
    assert models.ready.is_set()
    assert models.snapshot.route("m").workers == 0


async def test_workers_come_drain_and_go(table: tuple[RoutingTable, Buckets]) -> None:
    models, buckets = table
    for change in (Change("m", MANIFEST, 1), None):
        buckets.models.put_nowait(change)
    both = [CAPABILITY_CHAT, CAPABILITY_RESUME]
    for change in (worker("a", context_tokens=512, capabilities=both), None, worker("b", context_tokens=256)):
        buckets.workers.put_nowait(change)
    await buckets.told()
    route = models.snapshot.route("m")
    assert (route.workers, route.context_tokens, route.can_resume) == (2, 256, False)
    buckets.workers.put_nowait(worker("b", draining=True))
    await buckets.told()
    assert models.snapshot.route("m").can_resume
    assert "b:1" in models.snapshot.addresses
    buckets.workers.put_nowait(Change("b", None, 2))
    await buckets.told()
    assert models.snapshot.addresses == {"a:1"}


async def test_a_renewal_does_not_replace_the_table(table: tuple[RoutingTable, Buckets]) -> None:
    models, buckets = table
    for change in (Change("m", MANIFEST, 1), None):
        buckets.models.put_nowait(change)
    for change in (worker("a", slots_free=1), None):
        buckets.workers.put_nowait(change)
    await buckets.told()
    before = models.snapshot
    buckets.workers.put_nowait(worker("a", slots_free=2))
    await buckets.told()
    assert models.snapshot is before


async def test_nonsense_in_a_bucket_changes_nothing(table: tuple[RoutingTable, Buckets]) -> None:
    models, buckets = table
    for change in (Change("m", MANIFEST, 1), Change("n", b"{", 1), Change("m", b"[1]", 2), None):
        buckets.models.put_nowait(change)
    for change in (Change("a", b"\xff\xff", 1), None):
        buckets.workers.put_nowait(change)
    await buckets.told()
    assert set(models.snapshot.routes) == {"m"}


async def test_a_model_nobody_knows_is_404_and_one_that_cannot_is_400(table: tuple[RoutingTable, Buckets]) -> None:
    models, buckets = table
    for change in (Change("m", MANIFEST, 1), None):
        buckets.models.put_nowait(change)
    for change in (worker("a"), None):
        buckets.workers.put_nowait(change)
    await buckets.told()
    with pytest.raises(UplionError) as caught:
        models.route("x", Capability.CHAT)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    with pytest.raises(UplionError) as caught:
        models.route("m", Capability.EMBEDDING)
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert models.route("m", Capability.CHAT).name == "m"
