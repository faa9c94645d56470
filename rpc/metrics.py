"""The Prometheus metrics of services that want their callers' identity proven."""

from common.metrics import Counter

RPC_STRANGERS = Counter("uplion_rpc_strangers", "Calls refused since nothing proved that authz made their identity")
