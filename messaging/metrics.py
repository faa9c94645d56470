"""The Prometheus metrics of the usage outbox: usage events on their way to billing."""

from common.metrics import Counter, Gauge

USAGE_NOT_TAKEN = Counter("uplion_usage_events_not_taken", "Usage events that the stream did not take at once")
USAGE_SPOOLED = Counter("uplion_usage_events_spooled", "Usage events written to the local spool")
USAGE_SPOOL_BYTES = Gauge("uplion_usage_spool_bytes", "What waits in the local spool")
USAGE_SPOOL_FAILURES = Counter("uplion_usage_spool_failures", "Writes to the spool that failed: full, or a disk error")
USAGE_LOST = Counter("uplion_usage_events_lost", "Usage events dropped: no broker, and no room to keep them")
