"""One billing process does what is to be done once: which one, and how long workers are there."""

import asyncio
from contextlib import asynccontextmanager, suppress
from decimal import Decimal

from uplion.dispatch.v1.worker_state_pb2 import WorkerState

from billing.duties.worker_uptime import WorkerUptime
from billing.leader import Duty, lead
from common import names
from tests.kit.until import until


@asynccontextmanager
async def running(*coroutines):
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_one_leads_and_another_takes_over(harness):
    done = {"one": 0, "two": 0}

    def duty(name):
        async def count():
            done[name] += 1
            raise ValueError("a failure is not the end")

        return lead(harness.settings.postgres_url, [Duty("count", 0.01, count)])

    async with running(duty("one"), duty("two")):
        await until(lambda: max(done.values()) > 5)
        assert min(done.values()) == 0
        await harness.database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE locktype = 'advisory' AND datname = current_database()"
        )
        before = dict(done)
        await until(lambda: sum(done.values()) > sum(before.values()) + 50)


async def test_a_duty_that_swallows_its_end_delays_nobody(harness):
    """The NATS client loses a cancellation now and then: billing then slept on until the duty's next turn."""
    begun = asyncio.Event()

    async def swallow():
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)

    leader = asyncio.create_task(lead(harness.settings.postgres_url, [Duty("swallow", 60, swallow)]))
    async with asyncio.timeout(30):
        await begun.wait()
        leader.cancel()
        await asyncio.wait({leader})
    assert leader.cancelled()


async def test_workers_are_counted_while_they_live(harness):
    bucket = await harness.bus.js.key_value(names.KV_WORKERS)
    model = f"model-{harness.account}"
    for worker in ("w1", "w2"):
        await bucket.put(f"{harness.account}-{worker}", WorkerState(model=model).SerializeToString())
    uptime = WorkerUptime(harness.bus, harness.database)
    await uptime.sample()
    seconds = "SELECT coalesce(sum(worker_seconds), 0) FROM worker_hourly WHERE model = $1"
    assert await harness.database.fetchval(seconds, model) == 0
    await asyncio.sleep(0.1)
    await uptime.sample()
    first = await harness.database.fetchval(seconds, model)
    assert Decimal("0.2") <= first < 2 * 20
    await bucket.delete(f"{harness.account}-w2")
    await uptime.sample()
    assert await harness.database.fetchval(seconds, model) > first
