"""Settings of billing."""

from dataclasses import dataclass
from typing import ClassVar

from common.settings import setting


@dataclass(frozen=True, slots=True)
class BillingSettings:
    """UPLION_BILLING_*"""

    PREFIX: ClassVar[str] = "BILLING"
    postgres_url: str = setting(
        doc="database of the ledger; while it is away usage events wait in their stream",
        env="DATABASE_URL",
        secret=True,
    )
    redis_url: str = setting(
        doc="Valkey, where reservations are settled; while it is away their events are not acknowledged",
        env="REDIS_URL",
        secret=True,
    )
    nats_url: str = setting(
        doc="NATS, where usage events come from; while it is away nothing is billed", env="NATS_URL", secret=True
    )
    batch_events: int = setting(5_000, doc="events that complete a batch")
    lag_batch_events: int = setting(20_000, doc="most events in one transaction while a backlog waits")
    batch_seconds: float = setting(1.0, doc="seconds a batch waits for more events; usage is that much older")
    idle_seconds: float = setting(0.2, doc="seconds without a new event after which a batch waits no longer")
    concurrent_batches: int = setting(2, doc="batches under way at once, so that decoding overlaps with the database")
    retention_months: int = setting(13, doc="months before this one whose usage events are kept; rollups stay for ever")
    ledger_key: str | None = setting(
        None, doc="signs the ledger's daily roots: 32 or more random characters; unset: none are signed", secret=True
    )
    orphan_seconds: float = setting(10.0, doc="seconds between checks for reservations that no usage event settles")
    orphan_grace_seconds: float = setting(
        60.0, doc="seconds after its deadline in which a request's event may still arrive"
    )
    alert_webhook_url: str | None = setting(
        None, doc="where alerts are sent with POST; unset: they are only listed and counted", secret=True
    )
    alert_webhook_secret: str | None = setting(
        None, doc="signs alerts that are sent: whsec_ and base64, or 16 or more characters", secret=True
    )
    alert_budget_percents: tuple[str, ...] = setting(
        ("50", "80", "100"), doc="used percentages of a budget that raise an alert"
    )
    alert_anomaly_factor: float = setting(5.0, doc="an hour that cost so many times the median hour raises an alert")
    alert_anomaly_floor: float = setting(1.0, doc="an hour that cost less, in its currency, raises none")
    alert_lag_seconds: float = setting(60.0, doc="usage events that wait longer to be billed raise an alert")
    reconcile_seconds: float = setting(
        300.0, doc="seconds between two reconciliations; a difference is found that much later"
    )
    schema_seconds: float = setting(
        60.0, doc="seconds to wait at start for control to migrate the database; then it fails"
    )
