"""The service: connects everything in order, serves checks until told to stop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from secrets import token_hex

from authz.deciding import Decider
from authz.keys import KeyRing, KeyRingLimits
from authz.limits import LimitRules, Limits
from authz.revocations import follow
from authz.service import AuthorizationService
from authz.settings import AuthzSettings
from authz.shelf import ValkeyShelf
from authz.store import SCHEMA_VERSION, Store
from authz.valkey import Valkey
from common.bus import connect_bus
from common.database import connect_pool, wait_for_schema
from common.lifecycle import grpc_server
from common.settings import SettingsError


async def main(settings: AuthzSettings, stop: asyncio.Event) -> None:
    """Serves checks until `stop`, then drains."""
    peppers = _peppers(settings.peppers)
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
        limits = Limits(valkey, store, _rules(settings), _ids())
        service = AuthorizationService(Decider(keys, limits, peppers))
        following = asyncio.Event()
        watcher = tasks.create_task(follow(bus, keys, following), name="revocations")
        await wait_for_schema(pool, SCHEMA_VERSION, seconds=settings.schema_seconds)
        await following.wait()
        await limits.warm()
        async with grpc_server(
            "authz",
            settings.listen,
            service.register,
            drain_seconds=settings.drain_seconds,
            grace_seconds=settings.grace_seconds,
        ):
            await stop.wait()
        watcher.cancel()


@asynccontextmanager
async def _valkey(settings: AuthzSettings) -> AsyncIterator[Valkey]:
    valkey = Valkey(settings.redis_url, call_seconds=settings.limits_seconds)
    try:
        yield valkey
    finally:
        await valkey.close()


def _peppers(texts: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for text in texts:
        name, _, secret = text.partition(":")
        if not name or not secret:
            raise SettingsError(["UPLION_AUTHZ_PEPPERS: each pepper is written <id>:<secret>"])
        found[name] = secret.encode()
    if not found:
        raise SettingsError(["UPLION_AUTHZ_PEPPERS holds no pepper"])
    return found


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
        reservation=settings.reservation_seconds,
        outage=settings.outage_seconds,
        local_share=settings.local_share,
    )
