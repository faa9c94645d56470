"""Billing is killed, and servers that it needs go away: nothing is lost or counted twice, and it recovers by itself."""

import asyncio
import dataclasses
import os
import sys

import pytest

from common.settings import dump
from messaging import bus as bus_module
from tests.kit.until import until

# A real billing process that dies, as by kill -9, the first time it comes to this point.
KILLED = """
import os, runpy, signal, sys
import messaging.bus
messaging.bus.USAGE_ACK_WAIT_SECONDS = 1.0
import {module}

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

{module}.{name} = die
sys.argv = ["billing"]
runpy.run_module("billing", run_name="__main__")
"""
POINTS = {
    "inside the transaction": ("billing.rollups", "Sums.write"),
    "between commit and settlement": ("billing.reservations.settlement", "Settlement.settle"),
    "between settlement and ack": ("billing.consumer", "Consumer._acknowledge"),
}


async def run_killed(settings, module, name):
    environment = {**os.environ, **dump(settings), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = KILLED.format(module=module, name=name)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(90):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == -9, output.decode()


@pytest.mark.parametrize("point", POINTS)
async def test_a_killed_process_loses_and_doubles_nothing(harness, monkeypatch, point):
    """F2: the next process is given the same events again, and all ends as if nothing had happened."""
    monkeypatch.setattr(bus_module, "USAGE_ACK_WAIT_SECONDS", 1.0)
    events = [harness.event(number) for number in range(50)]
    await harness.reserve(*events)
    await harness.publish(*events)
    whole = dataclasses.replace(harness.settings, batch_events=50, batch_seconds=30.0, idle_seconds=30.0)
    await run_killed(whole, *POINTS[point])
    committed = await harness.database.fetchval("SELECT count(*) FROM usage_events")
    assert committed == (0 if point == "inside the transaction" else 50)
    await harness.bill()
    await harness.check(*events)
    quota = await harness.quota()
    assert quota["reserved"] == 0
    assert quota["used"] == sum(event.usage.input_tokens + event.usage.output_tokens for event in events)


async def test_sigterm_under_load_ends_in_order_and_the_next_process_goes_on_at_once(harness):
    """Events that were delivered and not billed are returned to the stream, without the ack wait of 20 s."""
    events = [harness.event(number) for number in range(3000)]
    chosen = dataclasses.replace(harness.settings, batch_events=50)
    environment = {**os.environ, **dump(chosen), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "billing", env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        await harness.publish(*events)

        async def some():
            return await harness.database.fetchval("SELECT count(*) FROM usage_events") > 0

        await until(some)
        process.terminate()
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
    async with asyncio.timeout(19):
        await harness.bill()
    await harness.check(*events)


class Outage:
    """Publishes and bills all the while; `server` goes away in the middle and comes back."""

    def __init__(self, harness, server):
        self.harness, self.server = harness, server
        self.events = []

    async def publish(self, count):
        events = [self.harness.event(len(self.events) + number) for number in range(count)]
        self.events += events
        await self.harness.reserve(*events[:3])
        await self.harness.publish(*events)

    async def finish(self):
        await self.harness.until_done()
        await self.harness.check(*self.events)


async def test_postgres_dies_in_the_middle_and_comes_back(with_servers, start_server):
    """F5, F6: lag grows and goes away."""
    server = await asyncio.to_thread(start_server, "postgres")
    async with with_servers(postgres_url=server.url) as harness, harness.billing(batch_events=200):
        outage = Outage(harness, server)
        await outage.publish(300)
        await harness.until_done()
        await outage.publish(200)
        await server.kill()
        await outage.publish(500)
        await asyncio.sleep(1.0)
        await server.start()
        await outage.publish(100)
        await outage.finish()
        assert (await harness.quota())["reserved"] == 0


async def test_a_reset_connection_in_the_middle_of_a_transaction_is_tried_again(harness):
    """F6: connections end while batches run."""
    events = [harness.event(number) for number in range(1500)]
    async with harness.billing(batch_events=100):
        await harness.publish(*events)
        for _ in range(5):
            await harness.database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await asyncio.sleep(0.05)
        await harness.until_done()
    await harness.check(*events)


async def test_valkey_dies_in_the_middle_and_comes_back_empty(with_servers, start_server):
    """F8: the counters are rebuilt from what the ledger says."""
    server = await asyncio.to_thread(start_server, "valkey")
    async with with_servers(redis_url=server.url) as harness, harness.billing(batch_events=200):
        outage = Outage(harness, server)
        await outage.publish(300)
        await harness.until_done()
        await server.kill()
        lost = [harness.event(number) for number in range(300, 600)]
        outage.events += lost
        await harness.publish(*lost)
        await asyncio.sleep(0.5)
        await server.start()
        await outage.finish()
        total = await harness.database.fetchval(
            "SELECT tokens FROM balances WHERE scope = 'a' AND model = '' AND period = 'life'"
        )
        assert (await harness.quota())["used"] == total


async def test_nats_dies_in_the_middle_and_comes_back(with_servers, start_server, monkeypatch):
    """F3: what was acknowledged to publishers is billed once, whatever was delivered or acked when it died."""
    monkeypatch.setattr(bus_module, "USAGE_ACK_WAIT_SECONDS", 1.0)
    server = await asyncio.to_thread(start_server, "nats")
    async with with_servers(nats_url=server.url) as harness, harness.billing(batch_events=200):
        outage = Outage(harness, server)
        await outage.publish(300)
        await harness.until_done()
        await outage.publish(300)
        await server.kill()
        await asyncio.sleep(0.3)
        await server.start()
        await until(lambda: harness.bus.connected)
        await outage.publish(100)
        await outage.finish()
