"""The Prometheus metrics of a worker: our own names, and those that dashboards and autoscalers know as vLLM's."""

from common.metrics import Counter, Gauge, Histogram
from common.telemetry import DURATIONS

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
VLLM_FIRST_TOKEN = Histogram("vllm:time_to_first_token_seconds", "Until the first token", _VLLM, buckets=DURATIONS)
VLLM_LATENCY = Histogram("vllm:e2e_request_latency_seconds", "From the ticket to the end", _VLLM, buckets=DURATIONS)
VLLM_QUEUE_TIME = Histogram(
    "vllm:request_queue_time_seconds", "From the ticket to the engine", _VLLM, buckets=DURATIONS
)
