"""The service: migrates the database, creates the first keys for `bootstrap_file`, and serves the admin API."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import asyncpg

from common.errors import UplionError
from common.lifecycle import Ready, forever, not_cancelled
from control.bootstrap import bootstrap
from control.calls import AdminCalls
from control.invalidation import Invalidations
from control.last_used import record_last_used
from control.registration import register
from control.schema.migrate import migrate
from control.services.account_service import AccountService
from control.services.alert_service import AlertService
from control.services.key_service import KeyService
from control.services.ledger_service import LedgerService
from control.services.model_service import ModelService
from control.services.openapi_service import OpenAPIService
from control.services.price_service import PriceService
from control.services.project_service import ProjectService
from control.services.reconciliation_service import ReconciliationService
from control.services.request_service import RequestService
from control.services.statement_service import StatementService
from control.services.usage_service import UsageService
from control.settings import ControlSettings
from control.stores.accounts import AccountStore
from control.stores.alerts import AlertStore
from control.stores.attempts import AttemptStore
from control.stores.database import QUERY_SECONDS
from control.stores.decision_log import DecisionLog
from control.stores.erasure import Erasure
from control.stores.keys import KeyStore
from control.stores.ledger_export import LedgerExport
from control.stores.models import ModelStore
from control.stores.prices import PriceStore
from control.stores.projects import ProjectStore
from control.stores.reconciliations import ReconciliationStore
from control.stores.usage import UsageStore
from credentials import shared_secrets
from credentials.identity_proof import IdentityProofs
from messaging.bus import Bus, connect_bus
from rpc.identity import IdentityInterceptor
from rpc.server import grpc_server
from storage.postgres import connect_pool

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
_RETRY_SECONDS = 0.2


async def main(settings: ControlSettings, stop: asyncio.Event, ready: Ready) -> None:
    """Runs control until `stop`. Any number of them may run beside each other."""
    peppers = shared_secrets.read(settings.peppers, "UPLION_PEPPERS")
    proofs = IdentityProofs.of(settings.proof_keys)
    async with (
        connect_bus(settings.nats_url, "control") as bus,
        connect_pool(settings.postgres_url, least=0, command_seconds=QUERY_SECONDS) as pool,
    ):
        models = ModelStore(bus)
        await models.restore()
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
                settings.listen,
                lambda server: register(server, _services(pool, bus, models, key_service)),
                interceptors=[IdentityInterceptor(proofs), AdminCalls()],
                drain_seconds=settings.drain_seconds,
                grace_seconds=settings.grace_seconds,
            ) as address,
            forever(
                {
                    "queues after a broker's restart": partial(_restore_after_reconnects, models, bus),
                    "when keys were last used": partial(record_last_used, bus, key_store),
                }
            ),
        ):
            ready(address)
            await stop.wait()


async def _restore_after_reconnects(models: ModelStore, bus: Bus) -> None:
    """Restores streams and queues that a restarted broker lost, whenever it reconnects; runs until cancelled."""
    restored = bus.reconnects
    while not_cancelled():
        await asyncio.sleep(_RETRY_SECONDS)
        seen = bus.reconnects
        if seen == restored:
            continue
        try:
            await models.restore()
            restored = seen
        except UplionError as problem:
            logger.warning("queues are not restored yet", extra={"problem": problem.message})


def _services(pool: "Pool", bus: Bus, models: ModelStore, key_service: KeyService) -> list[object]:
    invalidations = Invalidations(bus)
    return [
        AccountService(AccountStore(pool), Erasure(pool), invalidations),
        AlertService(AlertStore(pool)),
        key_service,
        LedgerService(LedgerExport(pool)),
        ModelService(models),
        OpenAPIService(),
        PriceService(PriceStore(pool), invalidations),
        ProjectService(ProjectStore(pool), invalidations),
        ReconciliationService(ReconciliationStore(pool), bus),
        RequestService(AttemptStore(pool), DecisionLog(bus)),
        StatementService(UsageStore(pool)),
        UsageService(UsageStore(pool)),
    ]


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
