"""The service: migrates the database, makes the first keys where told to, and serves the admin API."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import grpc.aio
from uplion.control.v1.account_service_pb2_grpc import add_AccountServiceServicer_to_server
from uplion.control.v1.alert_service_pb2_grpc import add_AlertServiceServicer_to_server
from uplion.control.v1.key_service_pb2_grpc import add_KeyServiceServicer_to_server
from uplion.control.v1.ledger_service_pb2_grpc import add_LedgerServiceServicer_to_server
from uplion.control.v1.model_service_pb2_grpc import add_ModelServiceServicer_to_server
from uplion.control.v1.price_service_pb2_grpc import add_PriceServiceServicer_to_server
from uplion.control.v1.project_service_pb2_grpc import add_ProjectServiceServicer_to_server
from uplion.control.v1.reconciliation_service_pb2_grpc import add_ReconciliationServiceServicer_to_server
from uplion.control.v1.request_service_pb2_grpc import add_RequestServiceServicer_to_server
from uplion.control.v1.statement_service_pb2_grpc import add_StatementServiceServicer_to_server
from uplion.control.v1.usage_service_pb2_grpc import add_UsageServiceServicer_to_server

from common.errors import UplionError
from common.lifecycle import grpc_server
from common.tasks import not_cancelled
from control.accounts import AccountService
from control.alerts import AlertService
from control.books import Books
from control.bootstrap import bootstrap
from control.catalog import Catalog
from control.database import QUERY_SECONDS
from control.erasure import Erasure
from control.explaining import RequestService
from control.invalidation import Invalidations
from control.keys import KeyService
from control.keystore import KeyStore
from control.ledger import Ledger
from control.models import ModelService
from control.permissions import ScopesInterceptor
from control.prices import PriceService
from control.projects import ProjectService
from control.proofs import Proofs
from control.proving import LedgerService
from control.reading import Reading
from control.reconciling import ReconciliationService
from control.schema import migrate
from control.settings import ControlSettings
from control.statements import StatementService
from control.store import Store
from control.usage import UsageService
from control.uses import note_used
from credentials.peppers import read as read_peppers
from messaging.bus import Bus, connect_bus
from storage.postgres import connect_pool

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.2


async def main(settings: ControlSettings, stop: asyncio.Event) -> None:
    """Runs control until `stop`. Any number of them may run beside each other."""
    peppers = read_peppers(settings.peppers, "UPLION_PEPPERS")
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
                    peppers=peppers,
                    environment=settings.key_environment,
                )
        key_store = KeyStore(pool)
        key_service = KeyService(key_store, Invalidations(bus), peppers=peppers, environment=settings.key_environment)
        async with (
            grpc_server(
                "control",
                settings.listen,
                lambda server: _register(server, pool, bus, catalog, key_service),
                interceptors=[ScopesInterceptor()],
                drain_seconds=settings.drain_seconds,
                grace_seconds=settings.grace_seconds,
            ),
            asyncio.TaskGroup() as tasks,
        ):
            keeper = tasks.create_task(_keep(catalog, bus), name="queues after a broker's restart")
            noting = tasks.create_task(note_used(bus, key_store), name="when keys were last used")
            await stop.wait()
            keeper.cancel()
            noting.cancel()


async def _keep(catalog: Catalog, bus: Bus) -> None:
    """Restores what a restarted broker forgot, within a moment of its return; for ever."""
    restored = bus.reconnects
    while not_cancelled():
        await asyncio.sleep(_RETRY_SECONDS)
        seen = bus.reconnects
        if seen == restored:
            continue
        try:
            await catalog.restore()
            restored = seen
        except UplionError as problem:
            logger.warning("queues are not restored yet", extra={"problem": problem.message})


def _register(server: grpc.aio.Server, pool: "Pool", bus: Bus, catalog: Catalog, key_service: KeyService) -> None:
    """Every service here is in edge.descriptors and edge.routes, and every method in control.permissions."""
    store, invalidations = Store(pool), Invalidations(bus)
    add_AccountServiceServicer_to_server(AccountService(store, Erasure(pool), invalidations), server)
    add_AlertServiceServicer_to_server(AlertService(Books(pool)), server)
    add_KeyServiceServicer_to_server(key_service, server)
    add_LedgerServiceServicer_to_server(LedgerService(Proofs(pool)), server)
    add_ModelServiceServicer_to_server(ModelService(catalog), server)
    add_PriceServiceServicer_to_server(PriceService(Books(pool), invalidations), server)
    add_ProjectServiceServicer_to_server(ProjectService(store, invalidations), server)
    add_ReconciliationServiceServicer_to_server(ReconciliationService(pool, bus), server)
    add_RequestServiceServicer_to_server(RequestService(Ledger(pool), bus), server)
    add_StatementServiceServicer_to_server(StatementService(Reading(pool)), server)
    add_UsageServiceServicer_to_server(UsageService(Reading(pool)), server)


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
