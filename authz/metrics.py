"""The Prometheus metrics of authz."""

from common.metrics import Counter

AUTHZ_CHECKS = Counter("uplion_authz_checks", "Checks by outcome: ADMITTED, or the reason of the refusal", ["outcome"])
AUTHZ_LOCAL_GRANTS = Counter("uplion_authz_local_grants", "Requests admitted on a local share while Valkey was down")
AUTHZ_SHADOW_REFUSALS = Counter(
    "uplion_authz_shadow_refusals", "Requests that a rule in shadow would have refused", ["measure", "period"]
)
AUTHZ_FORGOTTEN = Counter(
    "uplion_authz_forgotten_reservations",
    "Reservations that recovery of a lost Valkey would miss: too many at once",
)
AUTHZ_UNDELIVERED = Counter(
    "uplion_authz_undelivered_requests", "Admitted requests that no router got: their reservations were given back"
)
AUTHZ_DECISIONS_DROPPED = Counter("uplion_authz_dropped_decisions", "Refusals that `uplion explain` will not know of")
