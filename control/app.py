"""The service: migrates the database, makes the first keys where told to, and serves the admin API."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import grpc.aio
from uplion.control.v1.account_service_pb2_grpc import add_AccountServiceServicer_to_server
from uplion.control.v1.key_service_pb2_grpc import add_KeyServiceServicer_to_server
from uplion.control.v1.model_service_pb2_grpc import add_ModelServiceServicer_to_server
from uplion.control.v1.price_service_pb2_grpc import add_PriceServiceServicer_to_server
from uplion.control.v1.request_service_pb2_grpc import add_RequestServiceServicer_to_server
from uplion.control.v1.usage_service_pb2_grpc import add_UsageServiceServicer_to_server

from common.bus import Bus, connect_bus
from common.database import connect_pool
from common.errors import UplionError
from common.lifecycle import grpc_server
from control.accounts import AccountService
from control.books import Books
from control.bootstrap import bootstrap
from control.catalog import Catalog
from control.database import QUERY_SECONDS
from control.explaining import RequestService
from control.invalidation import Invalidations
from control.keys import KeyService
from control.ledger import Ledger
from control.models import ModelService
from control.prices import PriceService
from control.reading import Reading
from control.schema import migrate
from control.settings import ControlSettings
from control.store import Store
from control.usage import UsageService

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.2


async def main(settings: ControlSettings, stop: asyncio.Event) -> None:
    """Runs control until `stop`. Any number of them may run beside each other."""
    pepper = settings.pepper.encode()
    async with (
        connect_bus(settings.nats_url, "control") as bus,
        connect_pool(settings.postgres_url, least=0, command_seconds=QUERY_SECONDS) as pool,
    ):
        catalog = Catalog(bus)
        await catalog.restore()
        async with _first_connection(settings.postgres_url, settings.database_seconds) as connection:
            await migrate(connection)
            if settings.bootstrap_file is not None:
                await bootstrap(
                    connection,
                    settings.bootstrap_file,
                    pepper=pepper,
                    pepper_id=settings.pepper_id,
                    environment=settings.key_environment,
                )
        async with (
            grpc_server(
                "control",
                settings.listen,
                lambda server: _register(
                    server,
                    Store(pool),
                    Books(pool),
                    Reading(pool),
                    RequestService(Ledger(pool), bus),
                    catalog,
                    Invalidations(bus),
                    settings,
                ),
                drain_seconds=settings.drain_seconds,
                grace_seconds=settings.grace_seconds,
            ),
            asyncio.TaskGroup() as tasks,
        ):
            keeper = tasks.create_task(_keep(catalog, bus), name="queues after a broker's restart")
            await stop.wait()
            keeper.cancel()


async def _keep(catalog: Catalog, bus: Bus) -> None:
    """Restores what a restarted broker forgot, within a moment of its return; for ever."""
    restored = bus.reconnects
    while True:
        await asyncio.sleep(_RETRY_SECONDS)
        seen = bus.reconnects
        if seen == restored:
            continue
        try:
            await catalog.restore()
            restored = seen
        except UplionError as problem:
            logger.warning("queues are not restored yet", extra={"problem": problem.message})


def _register(
    server: grpc.aio.Server,
    store: Store,
    books: Books,
    reading: Reading,
    requests: RequestService,
    catalog: Catalog,
    invalidations: Invalidations,
    settings: ControlSettings,
) -> None:
    key_service = KeyService(
        store,
        invalidations,
        pepper=settings.pepper.encode(),
        pepper_id=settings.pepper_id,
        environment=settings.key_environment,
    )
    add_AccountServiceServicer_to_server(AccountService(store, invalidations), server)
    add_KeyServiceServicer_to_server(key_service, server)
    add_ModelServiceServicer_to_server(ModelService(catalog), server)
    add_PriceServiceServicer_to_server(PriceService(books, invalidations), server)
    add_RequestServiceServicer_to_server(requests, server)
    add_UsageServiceServicer_to_server(UsageService(reading), server)


@asynccontextmanager
async def _first_connection(url: str, seconds: float) -> AsyncIterator["Connection"]:
    """A connection of its own, without the pool's short deadlines; waits for a database that is still starting."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            connection = await asyncpg.connect(url, timeout=_CONNECT_SECONDS)
            break
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError) as problem:
            if loop.time() > deadline:
                raise
            logger.info("waiting for the database", extra={"problem": repr(problem)})
            await asyncio.sleep(_RETRY_SECONDS)
    try:
        yield connection
    finally:
        await connection.close(timeout=_CONNECT_SECONDS)
