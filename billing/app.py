"""The billing process: its connections, the consumer, and the leader's duties."""

import asyncio
import time
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from billing.alerting import detection, webhooks
from billing.alerting.detection import Alerts, Thresholds
from billing.alerting.webhooks import Webhook
from billing.consumer import Consumer
from billing.duties import retention, root_signing, worker_uptime
from billing.duties.root_signing import RootSigner, signing_key
from billing.duties.worker_uptime import WorkerUptime
from billing.leader import Duty, lead
from billing.reconciliation.counters import connect_counters
from billing.reconciliation.run import Reconciler, answer_requests
from billing.reservations.orphans import OrphanSweep
from billing.reservations.settlement import Settlement, connect_settlement
from billing.settings import BillingSettings
from billing.store import SCHEMA_VERSION, LedgerWriter
from common.lifecycle import Ready, forever, restarted
from messaging.bus import Bus, connect_bus
from storage.postgres import connect_pool, wait_for_schema

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

_BATCH_SECONDS = 30.0  # the longest a transaction may take


async def main(settings: BillingSettings, stop: asyncio.Event, ready: Ready) -> None:
    """Runs billing until `stop`. Batches under way are then finished, or left unacknowledged for another process."""
    async with (
        connect_bus(settings.nats_url, "billing") as bus,
        connect_settlement(settings.redis_url) as settlement,
        connect_counters(settings.redis_url) as counters,
        connect_pool(
            settings.postgres_url, least=0, most=settings.concurrent_batches + 4, command_seconds=_BATCH_SECONDS
        ) as pool,
    ):
        await bus.ensure_streams()
        await bus.ensure_usage_consumer()
        await wait_for_schema(pool, SCHEMA_VERSION, seconds=settings.schema_seconds)
        reconciler = Reconciler(bus, pool, counters)
        await answer_requests(bus, reconciler)
        ready("")
        duties = _duties(settings, bus, pool, settlement)
        duties.append(Duty("reconciling", settings.reconcile_seconds, reconciler.scheduled))
        async with forever({"billing lead": partial(lead, settings.postgres_url, duties)}):
            await restarted(
                "billing consumer", lambda: Consumer(bus, LedgerWriter(pool), settlement, settings).run(stop)
            )


def _duties(settings: BillingSettings, bus: Bus, pool: "Pool", settlement: Settlement) -> list[Duty]:
    """The periodic jobs of the leader."""

    async def forget() -> None:
        await retention.forget(pool, settings.retention_months, time.time())

    orphans = OrphanSweep(bus, settlement, settings.orphan_grace_seconds)
    alerts = Alerts(bus, pool, _thresholds(settings), webhook=settings.alert_webhook_url is not None)
    duties = [
        Duty("sampling", worker_uptime.EVERY_SECONDS, WorkerUptime(bus, pool).sample),
        Duty("retention", retention.EVERY_SECONDS, forget),
        Duty("orphans", settings.orphan_seconds, orphans.step),
        Duty("alerts", detection.EVERY_SECONDS, alerts.check),
    ]
    if settings.alert_webhook_url is not None:
        where = webhooks.target(settings.alert_webhook_url, settings.alert_webhook_secret)
        duties.append(Duty("webhook", webhooks.EVERY_SECONDS, Webhook(pool, where).deliver))
    if settings.ledger_key is not None:
        duties.append(
            Duty("roots", root_signing.EVERY_SECONDS, RootSigner(pool, signing_key(settings.ledger_key)).sign)
        )
    return duties


def _thresholds(settings: BillingSettings) -> Thresholds:
    percents = sorted({int(text) for text in settings.alert_budget_percents})
    return Thresholds(
        percents,
        Decimal(str(settings.alert_anomaly_factor)),
        Decimal(str(settings.alert_anomaly_floor)),
        settings.alert_lag_seconds,
    )
