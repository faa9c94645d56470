"""Limits on a real Valkey, with ledger and clock in the test's hand: what `main` puts together, without gRPC."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

from authz.credentials.key_record import KeyRecord
from authz.limits.counter_writes import CounterWrites
from authz.limits.in_flight import InFlight
from authz.limits.limiter import Grant, Limiter, LimiterSettings
from authz.limits.local_fallback import LocalFallback
from authz.limits.plans import LedgerBalance, Plans
from authz.limits.prices import Price, PriceTable
from authz.limits.recovery import StoreEpoch
from authz.request_facts import RequestFacts
from common.operations import Kind
from ledger.limits import Limit, Rule
from storage.valkey import Valkey


@dataclass
class Ledger:
    """What billing wrote."""

    used_totals: dict[tuple[str, str, str, str], int] = field(default_factory=dict)
    ended_tokens: dict[str, int] = field(default_factory=dict)  # by reservation

    async def used(self, account: str, wanted: Sequence[LedgerBalance]) -> list[int]:
        return [self.used_totals.get((each[0], each[1], each[2], each[3]), 0) for each in wanted]

    async def ended(self, request_ids: Sequence[str]) -> dict[str, int]:
        return dict(self.ended_tokens)


@dataclass
class Harness:
    """One authz's limits."""

    limits: Limiter
    valkey: Valkey
    ledger: Ledger
    prices: PriceTable
    counter_writes: CounterWrites
    redis_url: str
    now: list[float]
    account: str = field(default_factory=lambda: f"h-{uuid.uuid4().hex[:10]}")

    def record(
        self,
        *limits: Limit,
        key: str = "k",
        key_limits: Sequence[Limit] = (),
        project: str = "",
        project_limits: Sequence[Limit] = (),
    ) -> KeyRecord:
        """A key whose account has `limits`."""
        rules = [Rule("account", self.account, limit) for limit in limits]
        rules += [Rule("project", project, limit) for limit in project_limits]
        rules += [Rule("key", key, limit) for limit in key_limits]
        return KeyRecord(
            key, self.account, bytes(32), "p", frozenset(), active=True, project=project, rules=tuple(rules)
        )

    def price(
        self, model: str, input_price: float, output_price: float, request: float = 0, currency: str = "USD"
    ) -> None:
        """Per million tokens, and per request, from now on."""
        rates = (round(input_price * 1e6), round(output_price * 1e6), round(request * 1e12))
        known = [Price(name, 0, 1, *rates) for name, rates in self.prices.rates.items()]
        self.prices.update([*known, Price(model, 0, 1, currency, *rates)], self.now[0], 0)

    async def admit(
        self,
        record: KeyRecord,
        *,
        model: str = "m",
        size: int = 100,
        output: int | None = 10,
        choices: int = 1,
        kind: Kind = Kind.GENERATION,
    ) -> Grant:
        """`size` in input tokens."""
        return await self.limits.admit(
            record, RequestFacts("public", "", kind, model, size, output, choices, uuid.uuid4().hex)
        )


@asynccontextmanager
async def harness(redis_url: str, **rules: float) -> AsyncIterator[Harness]:
    """Connected, and with its tasks running."""
    valkey = Valkey(redis_url, call_seconds=30.0)
    ledger, prices, now = Ledger(), PriceTable(), [time.time()]
    in_flight, counter_writes = InFlight(10_000), CounterWrites(valkey)
    since = StoreEpoch(valkey, None, ledger, in_flight, counter_writes)
    numbers, head = count(), uuid.uuid4().hex
    limits = Limiter(
        valkey,
        ledger,
        Plans(prices, lambda: now[0]),
        LocalFallback(0.25),
        since,
        in_flight,
        counter_writes,
        LimiterSettings(**rules),  # type: ignore[arg-type]
        lambda: f"{head}-{next(numbers)}",
        wall=lambda: now[0],
    )
    ready = asyncio.Event()
    tasks = [asyncio.create_task(since.run(ready)), asyncio.create_task(counter_writes.run())]
    try:
        async with asyncio.timeout(30):
            await ready.wait()
        yield Harness(limits, valkey, ledger, prices, counter_writes, redis_url, now)
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await valkey.close()
