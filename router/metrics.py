"""The Prometheus metrics of a router; names of the GenAI semantic conventions where those exist."""

from common.metrics import Counter, Gauge, Histogram
from common.telemetry import DURATIONS

_OPERATION_MODEL = ["gen_ai_operation_name", "gen_ai_request_model"]
ROUTER_REQUESTS = Counter(
    "uplion_router_requests", "Requests by how they ended", ["surface", "operation", "model", "status"]
)
ROUTER_DURATION = Histogram(
    "gen_ai_server_request_duration_seconds", "Whole requests", _OPERATION_MODEL, buckets=DURATIONS
)
ROUTER_FIRST_TOKEN = Histogram(
    "gen_ai_server_time_to_first_token_seconds",
    "From a request's arrival to its first token",
    _OPERATION_MODEL,
    buckets=DURATIONS,
)
ROUTER_QUEUE = Histogram(
    "uplion_router_queue_seconds", "From a ticket to the offer that was accepted", ["model"], buckets=DURATIONS
)
ROUTER_IN_FLIGHT = Gauge("uplion_router_requests_in_flight", "Requests that have not ended")
ROUTER_ATTEMPTS_LOST = Counter("uplion_router_attempts_lost", "Attempts whose worker vanished or gave up", ["model"])
