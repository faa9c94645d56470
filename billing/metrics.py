"""The Prometheus metrics of a billing process."""

from common.metrics import Counter, Gauge, Histogram
from common.telemetry import DURATIONS
from ledger.usage_columns import TOKEN_CLASSES

BILLING_EVENTS = Counter("uplion_billing_events", "Usage events taken: new, duplicate or dead", ["outcome"])
BILLING_UNPRICED = Counter("uplion_billing_unpriced_events", "New events whose model had no price")
BILLING_REQUESTS = Counter("uplion_billing_requests", "Requests that were billed, however many attempts each took")
BILLING_TOKENS = Counter(
    "uplion_billing_tokens", f"Tokens in the ledger: {', '.join(each.name for each in TOKEN_CLASSES)}", ["kind"]
)
BILLING_COST = Counter("uplion_billing_cost", "What was billed, in its currency", ["currency"])
BILLING_UNPRICED_TOKENS = Counter("uplion_billing_unpriced_tokens", "Of the tokens: those without a price")
BILLING_ALERTS = Counter("uplion_billing_alerts", "Alerts by kind and level, each once", ["kind", "level"])
BILLING_BUDGETS_REACHED = Gauge(
    "uplion_billing_budgets_reached", "Budgets used to this percentage or more", ["percent"]
)
BILLING_STREAM_LAG = Gauge("uplion_billing_stream_lag_seconds", "Age of the oldest usage event that is not billed")
BILLING_DEAD = Gauge("uplion_billing_dead_messages", "Messages in the stream DEAD, which could not be used")
BILLING_WEBHOOK = Counter("uplion_billing_webhook_requests", "Webhook requests: delivered or failed", ["outcome"])
BILLING_LEADER = Gauge("uplion_billing_leader", "1 in the billing process that runs the periodic jobs")
BILLING_DUTY_FAILURES = Counter("uplion_billing_duty_failures", "Failed runs of the leader's periodic jobs", ["duty"])
BILLING_DIFFERENCES = Gauge("uplion_billing_differences", "Differences that the last reconciliation found", ["check"])
BILLING_RECONCILED = Gauge("uplion_billing_reconciled_seconds", "Unix time of the last reconciliation")
BILLING_BATCH_EVENTS = Histogram(
    "uplion_billing_batch_events", "Events in one transaction", buckets=(1, 5, 20, 100, 500, 1000, 2500, 5000)
)
BILLING_LAG = Histogram(
    "uplion_billing_lag_seconds", "From the end of a batch's oldest attempt to its commit", buckets=DURATIONS
)
BILLING_PENDING = Gauge("uplion_billing_pending_events", "Events in the stream that are not delivered to billing yet")
BILLING_ORPHANS = Counter("uplion_billing_orphans", "Reservations released because no usage event came for them")
BILLING_RETRIES = Counter("uplion_billing_retries", "Failures of ledger, settlement, dead or ack", ["step"])
