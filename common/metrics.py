"""Every Prometheus metric of the platform: one module, so that names stay one vocabulary and labels bounded sets.

No account, key or request id is ever a label. Names follow conventions.md 4.4 to 4.6 where they exist.
"""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

# --- billing ------------------------------------------------------------------------------------------
BILLING_EVENTS = Counter("uplion_billing_events", "Usage events taken: new, duplicate or dead", ["outcome"])
BILLING_UNPRICED = Counter("uplion_billing_unpriced_events", "New events whose model had no price")
BILLING_BATCH_EVENTS = Histogram(
    "uplion_billing_batch_events", "Events in one transaction", buckets=(1, 5, 20, 100, 500, 1000, 2500, 5000)
)
BILLING_LAG = Histogram(
    "uplion_billing_lag_seconds", "From the end of a batch's oldest attempt to its commit", buckets=_SECONDS
)
BILLING_PENDING = Gauge("uplion_billing_pending_events", "Events in the stream that no billing process has taken yet")
BILLING_RETRIES = Counter("uplion_billing_retries", "Failures of ledger, settlement, dead or ack", ["step"])
