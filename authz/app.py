"""The service: connects everything in order, serves checks until told to stop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from secrets import token_hex
from typing import TYPE_CHECKING

from authz.amendments import Amendments
from authz.deciding import Decider
from authz.decisions import Decisions
from authz.keys import KeyRing, KeyRingLimits
from authz.last_used import LastUsed
from authz.limits import LimitRules, Limits
from authz.outstanding import Outstanding
from authz.plans import Plans
from authz.prices import PriceTable, Pricing, follow_prices
from authz.releases import follow_releases
from authz.revocations import follow
from authz.service import AuthorizationService
from authz.settings import AuthzSettings
from authz.shares import Shares
from authz.shelf import ValkeyShelf
from authz.since import Since
from authz.store import SCHEMA_VERSION, Store
from common.lifecycle import grpc_server
from credentials.peppers import read as read_peppers
from messaging.bus import connect_bus
from storage.postgres import connect_pool, wait_for_schema
from storage.valkey import Valkey

if TYPE_CHECKING:
    from authz.tokens import Tokens


async def main(settings: AuthzSettings, stop: asyncio.Event) -> None:
    """Serves checks until `stop`, then drains."""
    peppers = read_peppers(settings.peppers, "UPLION_PEPPERS")
    tokens = _tokens(settings, next(iter(peppers.values())))
    async with (
        connect_bus(settings.nats_url, "authz") as bus,
        _valkey(settings) as valkey,
        connect_pool(
            settings.postgres_url, least=0, most=settings.postgres_connections, command_seconds=settings.lookup_seconds
        ) as pool,
        asyncio.TaskGroup() as tasks,
    ):
        store = Store(pool, settings.lookup_seconds)
        keys = KeyRing(store, ValkeyShelf(valkey, settings.key_ttl_seconds), _ring_limits(settings))
        prices, amendments = PriceTable(), Amendments(valkey)
        outstanding = Outstanding(settings.outstanding)
        since = Since(valkey, bus, store, outstanding, amendments)
        limits = Limits(
            valkey,
            store,
            Plans(prices),
            Shares(settings.local_share),
            since,
            outstanding,
            amendments,
            _rules(settings),
            _ids(),
        )
        decisions, last_used = Decisions(bus), LastUsed(bus)
        service = AuthorizationService(Decider(keys, limits, peppers, decisions, last_used, tokens))
        await wait_for_schema(pool, SCHEMA_VERSION, seconds=settings.schema_seconds)
        changed = asyncio.Event()
        ready = [asyncio.Event() for _ in range(4)]
        running = {
            "changes": follow(bus, keys, changed, ready[0]),
            "releases": follow_releases(bus, amendments, ready[1]),
            "since": since.run(ready[2]),
            "prices": follow_prices(store, prices, changed, _pricing(settings), ready[3]),
            "amendments": amendments.run(),
            "decisions": decisions.run(),
            "last used": last_used.run(),
        }
        if tokens is not None:
            running["issuers' keys"] = tokens.run()
        watchers = [tasks.create_task(work, name=name) for name, work in running.items()]
        for each in ready:
            await each.wait()
        await limits.warm()
        async with grpc_server(
            "authz",
            settings.listen,
            service.register,
            drain_seconds=settings.drain_seconds,
            grace_seconds=settings.grace_seconds,
        ):
            await stop.wait()
        for watcher in watchers:
            watcher.cancel()


@asynccontextmanager
async def _valkey(settings: AuthzSettings) -> AsyncIterator[Valkey]:
    valkey = Valkey(settings.redis_url, call_seconds=settings.limits_seconds)
    try:
        yield valkey
    finally:
        await valkey.close()


def _tokens(settings: AuthzSettings, pepper: bytes) -> "Tokens | None":
    """Imported only where it is used: the libraries take 27 MB."""
    if settings.issuers_file is None:
        return None
    from authz import issuers
    from authz.issuer_keys import Pace
    from authz.tokens import Tokens

    return Tokens(issuers.read(settings.issuers_file), pepper, Pace(refresh=settings.issuer_refresh_seconds))


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


def _rules(settings: AuthzSettings) -> LimitRules:
    return LimitRules(
        default_output_tokens=settings.default_output_tokens,
        most_output_tokens=settings.most_output_tokens,
        deadline=settings.deadline_seconds,
        given_up=settings.reservation_seconds,
        outage=settings.outage_seconds,
    )


def _pricing(settings: AuthzSettings) -> Pricing:
    return Pricing(every=settings.prices_seconds, ahead=settings.deadline_seconds + settings.prices_seconds)
