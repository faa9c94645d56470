"""The service: connects its resources in order, and serves checks until it is stopped."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING

from authz.check.authorizer import Authorizer
from authz.check.decision_log import DecisionLog
from authz.check.service import AuthorizationService
from authz.credentials.key_lookups import KeyLookups
from authz.credentials.key_ring import KeyRing, KeyRingLimits
from authz.credentials.shared_key_cache import ValkeyKeyCache
from authz.events.arrivals import Arrivals
from authz.events.invalidation import follow_invalidations
from authz.events.last_used import LastUsed
from authz.events.releases import follow_releases
from authz.limits.counter_writes import CounterWrites
from authz.limits.in_flight import InFlight
from authz.limits.limiter import Limiter, LimiterSettings
from authz.limits.local_fallback import LocalFallback
from authz.limits.plans import Defaults, Plans
from authz.limits.prices import PriceTable, Pricing, follow_prices
from authz.limits.recovery import StoreEpoch
from authz.settings import AuthzSettings
from authz.store import SCHEMA_VERSION, Store
from common.lifecycle import Ready, forever
from credentials import shared_secrets
from credentials.identity_proof import IdentityProofs
from messaging.bus import connect_bus
from rpc.server import grpc_server
from storage.postgres import connect_pool, wait_for_schema
from storage.valkey import connect_valkey

if TYPE_CHECKING:
    from authz.credentials.tokens import Tokens


async def main(settings: AuthzSettings, stop: asyncio.Event, ready: Ready) -> None:
    """Serves checks until `stop`, then drains."""
    peppers = shared_secrets.read(settings.peppers, "UPLION_PEPPERS")
    proofs = IdentityProofs.of(settings.proof_keys)
    tokens = _tokens(settings, next(iter(peppers.values())))
    async with (
        connect_bus(settings.nats_url, "authz") as bus,
        connect_valkey(settings.redis_url, call_seconds=settings.limits_seconds) as valkey,
        connect_pool(
            settings.postgres_url, least=0, most=settings.postgres_connections, command_seconds=settings.lookup_seconds
        ) as pool,
    ):
        store = Store(pool, settings.lookup_seconds)
        lookups = KeyLookups(store, settings.lookup_seconds)
        keys = KeyRing(lookups, ValkeyKeyCache(valkey, settings.key_ttl_seconds), _ring_limits(settings))
        prices, counter_writes = PriceTable(), CounterWrites(valkey)
        in_flight, local_fallback = InFlight(settings.outstanding), LocalFallback(settings.local_share)
        epoch = StoreEpoch(valkey, bus, store, in_flight, counter_writes)
        limits = Limiter(
            valkey,
            store,
            Plans(prices, defaults=Defaults(settings.key_concurrency, settings.account_concurrency)),
            local_fallback,
            epoch,
            in_flight,
            counter_writes,
            _rules(settings),
            _ids(),
        )
        decisions, last_used = DecisionLog(bus), LastUsed(bus)
        arrivals = Arrivals(bus, counter_writes, in_flight)
        service = AuthorizationService(
            Authorizer(keys, limits, peppers, decisions, last_used, arrivals, tokens), proofs
        )
        await wait_for_schema(pool, SCHEMA_VERSION, seconds=settings.schema_seconds)
        changed = asyncio.Event()
        begun = [asyncio.Event() for _ in range(5)]
        tasks: dict[str, Callable[[], Awaitable[None]]] = {
            "changes": partial(follow_invalidations, bus, keys, changed, begun[0]),
            "releases": partial(follow_releases, bus, counter_writes, local_fallback, begun[1]),
            "recovery": partial(epoch.run, begun[2]),
            "arrivals": partial(arrivals.run, begun[4]),
            "prices": partial(follow_prices, store, prices, changed, _pricing(settings), begun[3]),
            "key look-ups": lookups.run,
            "counter writes": counter_writes.run,
            "decisions": decisions.run,
            "last used": last_used.run,
        }
        if tokens is not None:
            tasks["issuers' keys"] = tokens.run
        async with forever(tasks):
            for each in begun:
                await each.wait()
            await limits.warm()
            async with grpc_server(
                settings.listen,
                service.register,
                drain_seconds=settings.drain_seconds,
                grace_seconds=settings.grace_seconds,
            ) as address:
                ready(address)
                await stop.wait()


def _tokens(settings: AuthzSettings, pepper: bytes) -> "Tokens | None":
    """Imported only where it is used: the libraries take 28 MB."""
    if settings.issuers_file is None:
        return None
    from authz.credentials import issuers
    from authz.credentials.issuer_keys import FetchIntervals
    from authz.credentials.tokens import Tokens

    return Tokens(issuers.read(settings.issuers_file), pepper, FetchIntervals(refresh=settings.issuer_refresh_seconds))


def _ids() -> Callable[[], str]:
    """Reservation ids: unique across processes and restarts by their random head, and cheap (0.2 us)."""
    head, numbers = token_hex(8), count()
    return lambda: f"{head}-{next(numbers):x}"


def _ring_limits(settings: AuthzSettings) -> KeyRingLimits:
    return KeyRingLimits(
        ttl=settings.key_ttl_seconds,
        stale=settings.stale_seconds,
        unknown_ttl=settings.unknown_ttl_seconds,
        known=settings.keys,
        unknown=settings.unknown_keys,
        lookups=settings.lookups,
    )


def _rules(settings: AuthzSettings) -> LimiterSettings:
    return LimiterSettings(
        default_output_tokens=settings.default_output_tokens,
        most_output_tokens=settings.most_output_tokens,
        deadline=settings.deadline_seconds,
        given_up=settings.reservation_seconds,
        outage=settings.outage_seconds,
        release=settings.release_seconds,
    )


def _pricing(settings: AuthzSettings) -> Pricing:
    return Pricing(every=settings.prices_seconds, ahead=settings.deadline_seconds + settings.prices_seconds)
