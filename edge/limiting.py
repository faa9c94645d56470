"""Local rate limits: a token bucket for each client address, and one for the listener."""

from envoy_data_plane.envoy.config.core.v3 import RuntimeFractionalPercent
from envoy_data_plane.envoy.config.route.v3 import RateLimit, RateLimitAction, RateLimitActionMaskedRemoteAddress
from envoy_data_plane.envoy.extensions.common.ratelimit.v3 import LocalRateLimitDescriptor, RateLimitDescriptorEntry
from envoy_data_plane.envoy.extensions.filters.http.local_ratelimit.v3 import LocalRateLimit
from envoy_data_plane.envoy.type.v3 import FractionalPercent, TokenBucket

from edge.building import seconds
from edge.settings import EdgeSettings

_V6_PREFIX_BITS = 64  # the prefix of one subscriber, whose addresses count as one client


def request_rates(settings: EdgeSettings, listener: str) -> LocalRateLimit:
    """A request takes a token from its client's bucket and one from the listener's; without either it is 429."""
    always = RuntimeFractionalPercent(default_value=FractionalPercent(numerator=100))
    client = RateLimitAction(
        masked_remote_address=RateLimitActionMaskedRemoteAddress(v6_prefix_mask_len=_V6_PREFIX_BITS)
    )
    return LocalRateLimit(
        stat_prefix=listener,
        filter_enabled=always,
        filter_enforced=always,
        rate_limited_as_resource_exhausted=True,
        token_bucket=_bucket(settings.requests_per_second, settings.requests_burst),
        rate_limits=[RateLimit(actions=[client])],
        descriptors=[
            LocalRateLimitDescriptor(
                entries=[RateLimitDescriptorEntry(key="masked_remote_address")],  # no value: one bucket for each
                token_bucket=_bucket(settings.client_requests_per_second, settings.client_requests_burst),
            )
        ],
        max_dynamic_descriptors=settings.clients,
    )


def _bucket(rate: int, burst: int) -> TokenBucket:
    return TokenBucket(max_tokens=burst, tokens_per_fill=rate, fill_interval=seconds(1))
