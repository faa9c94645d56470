"""What control needs goes away and comes back: clean answers meanwhile, no restart afterwards."""

import asyncio
import dataclasses
import functools

import asyncpg
import pytest
from google.protobuf.struct_pb2 import Struct
from uplion.control.v1.account_pb2 import CreateAccountRequest, ListAccountsRequest
from uplion.control.v1.model_pb2 import ApplyModelRequest, ListModelsRequest

from common import names
from common.errors import Reason
from messaging.bus import connect_bus
from tests.kit.until import until

MANIFEST = Struct()
MANIFEST.update(
    {
        "apiVersion": "model.youxam.com/v1alpha1",
        "kind": "AIModel",
        "metadata": {"name": "survivor"},
        "spec": {"type": "local", "model": "TinyLlama-1.1B"},
    }
)


async def until_it_works(call):
    """Once it raises nothing, what it gave."""

    async def worked():
        return [await call()]

    return (await until(worked, ignoring=(Exception,)))[0]


async def test_postgres_dies_and_comes_back(settings, start_control, start_server):
    """F5: key creation fails cleanly."""
    server = await asyncio.to_thread(start_server, "postgres")
    async with start_control(dataclasses.replace(settings, postgres_url=server.url)) as control:
        request = CreateAccountRequest(name="Team")
        await control.call(control.accounts.CreateAccount, request)
        await server.kill()
        refused = await control.refusal(control.accounts.CreateAccount, request)
        assert refused.reason is Reason.UNAVAILABLE
        assert refused.retry_after_seconds is not None
        assert "postgres" not in refused.message.lower()
        await server.start()
        await until_it_works(lambda: control.call(control.accounts.CreateAccount, request))


async def test_a_query_that_hangs_ends_in_time(settings, start_control, monkeypatch):
    monkeypatch.setattr("control.app.QUERY_SECONDS", 0.5)
    async with start_control(settings) as control:
        await until_it_works(lambda: control.call(control.accounts.CreateAccount, CreateAccountRequest(name="Team")))
        holder = await asyncpg.connect(settings.postgres_url)
        try:
            async with holder.transaction():
                await holder.execute("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
                async with asyncio.timeout(30):
                    refused = await control.refusal(control.accounts.ListAccounts, ListAccountsRequest())
                assert refused.reason is Reason.UNAVAILABLE
        finally:
            await holder.close()
        await until_it_works(lambda: control.call(control.accounts.ListAccounts, ListAccountsRequest()))


async def test_nats_dies_and_comes_back_without_what_lay_in_memory(settings, start_control, start_server):
    """The queue of an applied model exists again, before anybody asks for it."""
    server = await asyncio.to_thread(start_server, "nats")
    async with start_control(dataclasses.replace(settings, nats_url=server.url)) as control:
        await control.call(control.models.ApplyModel, ApplyModelRequest(manifest=MANIFEST))
        await server.kill()
        async with asyncio.timeout(30):
            refused = await control.refusal(control.models.ListModels, ListModelsRequest())
        assert refused.reason is Reason.UNAVAILABLE
        await server.start()
        response = await until_it_works(lambda: control.call(control.models.ListModels, ListModelsRequest()))
        assert [model.name for model in response.models] == ["survivor"]
        async with connect_bus(server.url, "test") as bus:
            consumer = names.task_consumer("survivor")
            await until_it_works(lambda: bus.js.consumer_info(names.STREAM_TASKS, consumer))


@pytest.mark.parametrize("missing", ["postgres_url", "nats_url"])
async def test_a_start_without_its_servers_fails_in_time(settings, start_control, monkeypatch, missing):
    nowhere = "postgresql://u:p@127.0.0.1:1/x" if missing == "postgres_url" else "nats://127.0.0.1:1"
    chosen = dataclasses.replace(settings, **{missing: nowhere}, database_seconds=0.5)
    monkeypatch.setattr("control.app.connect_bus", functools.partial(connect_bus, connect_seconds=1.0))
    with pytest.raises((OSError, TimeoutError)):
        async with asyncio.timeout(60) as limit, start_control(chosen):
            pass
    assert not limit.expired()
