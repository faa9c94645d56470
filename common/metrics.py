"""Every Prometheus metric of the platform: one module, so that names stay one vocabulary and labels bounded sets.

No account, key or request id is ever a label. Names follow conventions.md 4.4 to 4.6 where they exist.
"""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

# --- billing ------------------------------------------------------------------------------------------
BILLING_EVENTS = Counter("uplion_billing_events", "Usage events taken: new, duplicate or dead", ["outcome"])
BILLING_UNPRICED = Counter("uplion_billing_unpriced_events", "New events whose model had no price")
BILLING_REQUESTS = Counter("uplion_billing_requests", "Requests that were billed, however many attempts each took")
BILLING_TOKENS = Counter(
    "uplion_billing_tokens", "Tokens in the ledger: input, cached_input, cache_write, output, reasoning", ["kind"]
)
BILLING_COST = Counter("uplion_billing_cost", "What was billed, in its currency", ["currency"])
BILLING_UNPRICED_TOKENS = Counter("uplion_billing_unpriced_tokens", "Of the tokens: those without a price")
BILLING_ALERTS = Counter("uplion_billing_alerts", "Alerts by kind and level, each once", ["kind", "level"])
BILLING_BUDGETS_REACHED = Gauge(
    "uplion_billing_budgets_reached", "Budgets used to this percentage or more", ["percent"]
)
BILLING_STREAM_LAG = Gauge("uplion_billing_stream_lag_seconds", "Age of the oldest usage event that is not billed")
BILLING_DEAD = Gauge("uplion_billing_dead_messages", "Messages in DEAD, which nobody could use")
BILLING_WEBHOOK = Counter("uplion_billing_webhook_requests", "Alerts told: delivered or failed", ["outcome"])
BILLING_LEADER = Gauge("uplion_billing_leader", "1 in the billing process that does what one of them does for all")
BILLING_DUTY_FAILURES = Counter("uplion_billing_duty_failures", "Failures of what the leader does", ["duty"])
BILLING_DIFFERENCES = Gauge("uplion_billing_differences", "What did not agree in the last reconciliation", ["check"])
BILLING_RECONCILED = Gauge("uplion_billing_reconciled_seconds", "Unix time of the last reconciliation")
BILLING_BATCH_EVENTS = Histogram(
    "uplion_billing_batch_events", "Events in one transaction", buckets=(1, 5, 20, 100, 500, 1000, 2500, 5000)
)
BILLING_LAG = Histogram(
    "uplion_billing_lag_seconds", "From the end of a batch's oldest attempt to its commit", buckets=_SECONDS
)
BILLING_PENDING = Gauge("uplion_billing_pending_events", "Events in the stream that no billing process has taken yet")
BILLING_ORPHANS = Counter("uplion_billing_orphans", "Reservations given back because no event ever came for them")
BILLING_RETRIES = Counter("uplion_billing_retries", "Failures of ledger, settlement, dead or ack", ["step"])

# --- usage events of workers and routers, on their way to billing ------------------------------------------
USAGE_NOT_TAKEN = Counter("uplion_usage_events_not_taken", "Usage events that the stream did not take at once")
USAGE_SPOOLED = Counter("uplion_usage_events_spooled", "Usage events written to the local spool")
USAGE_SPOOL_BYTES = Gauge("uplion_usage_spool_bytes", "What waits in the local spool")
USAGE_SPOOL_FAILURES = Counter("uplion_usage_spool_failures", "Writes to the spool that failed: full, or a disk error")
USAGE_LOST = Counter("uplion_usage_events_lost", "Usage events dropped: no broker, and no room to keep them")

# --- inference: our own names, and meanings that dashboards and autoscalers know as vLLM's (conventions.md 4.4) ------
OFFERS_REFUSED = Counter("uplion_inference_offers_refused", "Offers that a router did not take")
SLOTS = Gauge("uplion_inference_slots", "Requests this worker can hold: free or taken", ["state"])
ATTEMPTS = Counter("uplion_inference_attempts", "Attempts that an engine took on, by how they ended", ["status"])
_VLLM = ["model_name"]
VLLM_WAITING = Gauge("vllm:num_requests_waiting", "Requests waiting for their prefill", _VLLM)
VLLM_RUNNING = Gauge("vllm:num_requests_running", "Requests being generated", _VLLM)
VLLM_CACHE_USE = Gauge("vllm:kv_cache_usage_perc", "Share of the key-value cache in use, 0 to 1", _VLLM)
VLLM_PROMPT_TOKENS = Counter("vllm:prompt_tokens", "Prompt tokens", _VLLM)
VLLM_GENERATION_TOKENS = Counter("vllm:generation_tokens", "Generated tokens", _VLLM)
VLLM_PREFIX_QUERIES = Counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache", _VLLM)
VLLM_PREFIX_HITS = Counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", _VLLM)
VLLM_SUCCESS = Counter("vllm:request_success", "Requests that ended well", [*_VLLM, "finished_reason"])
VLLM_FIRST_TOKEN = Histogram("vllm:time_to_first_token_seconds", "Until the first token", _VLLM, buckets=_SECONDS)
VLLM_LATENCY = Histogram("vllm:e2e_request_latency_seconds", "From the ticket to the end", _VLLM, buckets=_SECONDS)
VLLM_QUEUE_TIME = Histogram("vllm:request_queue_time_seconds", "From the ticket to the engine", _VLLM, buckets=_SECONDS)

# --- router -------------------------------------------------------------------------------------------
_OPERATION_MODEL = ["gen_ai_operation_name", "gen_ai_request_model"]
ROUTER_REQUESTS = Counter(
    "uplion_router_requests", "Requests by how they ended", ["surface", "operation", "model", "status"]
)
ROUTER_DURATION = Histogram(
    "gen_ai_server_request_duration_seconds", "Whole requests", _OPERATION_MODEL, buckets=_SECONDS
)
ROUTER_FIRST_TOKEN = Histogram(
    "gen_ai_server_time_to_first_token_seconds",
    "From a request's arrival to its first token",
    _OPERATION_MODEL,
    buckets=_SECONDS,
)
ROUTER_QUEUE = Histogram(
    "uplion_router_queue_seconds", "From a ticket to the offer that was taken", ["model"], buckets=_SECONDS
)
ROUTER_IN_FLIGHT = Gauge("uplion_router_requests_in_flight", "Requests that have not ended")
ROUTER_ATTEMPTS_LOST = Counter("uplion_router_attempts_lost", "Attempts whose worker vanished or gave up", ["model"])

# --- authz ----------------------------------------------------------------------------------------------
AUTHZ_CHECKS = Counter("uplion_authz_checks", "Checks by outcome: ADMITTED, or the reason of the refusal", ["outcome"])
AUTHZ_LOCAL_GRANTS = Counter("uplion_authz_local_grants", "Requests admitted on a local share while Valkey was down")
AUTHZ_SHADOW_REFUSALS = Counter(
    "uplion_authz_shadow_refusals", "Requests that a rule in shadow would have refused", ["measure", "period"]
)
AUTHZ_FORGOTTEN = Counter(
    "uplion_authz_forgotten_reservations", "Reservations that a fresh Valkey would not be told of: too many at once"
)
AUTHZ_DECISIONS_DROPPED = Counter("uplion_authz_dropped_decisions", "Refusals that `uplion explain` will not know of")
