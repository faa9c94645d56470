"""The most that a request may cost: every model's price, in memory.

Billing applies the price that is valid at a request's end, and knows which tokens were cached or reasoning. A
reservation cannot know that, so it takes the highest price that may apply until the request's deadline. Compute time is
not in it: it is not known before. A model without a price has no cost, so money budgets do not count its requests.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from authz.errors import DatabaseError
from common.lifecycle import not_cancelled

logger = logging.getLogger(__name__)


class Price(NamedTuple):
    """One version of a model's price. Tokens and requests in millionths of a millionth of the currency, rounded up."""

    model: str
    effective_from: float  # unix time
    version: int
    currency: str
    input: int  # of a token, by the dearest way to count it
    output: int
    request: int


class HighestRates(NamedTuple):
    """The most that a model's tokens and requests may cost; units as in Price."""

    currency: str
    input: int
    output: int
    request: int

    def millionths(self, input_tokens: int, output_tokens: int) -> int:
        """Of the currency, rounded up."""
        units = input_tokens * self.input + output_tokens * self.output + self.request
        return -(-units // 1_000_000)


FREE = HighestRates("", 0, 0, 0)


class PriceTable:
    """The current rates; replaced as a whole."""

    def __init__(self) -> None:
        self.rates: Mapping[str, HighestRates] = {}

    def update(self, prices: Iterable[Price], now: float, ahead_seconds: float) -> None:
        """`rates` stays the same object when nothing changed, so that plans made from it stay valid."""
        versions: dict[str, list[Price]] = defaultdict(list)
        for price in sorted(prices, key=lambda each: (each.effective_from, each.version)):
            versions[price.model].append(price)
        found = {}
        for model, each in versions.items():
            rates = _rates(each, now, now + ahead_seconds)
            if rates is not None:
                found[model] = rates
        if found != self.rates:
            self.rates = found


def _rates(versions: list[Price], now: float, until: float) -> HighestRates | None:
    """Of one model's versions, oldest first."""
    begun = [price for price in versions if price.effective_from <= now]
    coming = [price for price in versions if now < price.effective_from <= until]
    possible = begun[-1:] + coming
    if not possible:
        return None
    currency = possible[0].currency
    alike = [price for price in possible if price.currency == currency]
    return HighestRates(
        currency,
        max(price.input for price in alike),
        max(price.output for price in alike),
        max(price.request for price in alike),
    )


@dataclass(frozen=True, slots=True)
class Pricing:
    """How often prices are read, and how far ahead they count (seconds)."""

    every: float = 60.0
    ahead: float = 660.0


class PriceStore(Protocol):
    """The database of prices; raises DatabaseError."""

    async def prices(self) -> list[Price]: ...


async def follow_prices(
    store: PriceStore, table: PriceTable, changed: asyncio.Event, pricing: Pricing, ready: asyncio.Event
) -> None:
    """Keeps the table current until cancelled: reads when `changed`, and at intervals; `ready` after the first read."""
    while not_cancelled():
        changed.clear()
        try:
            table.update(await store.prices(), time.time(), pricing.ahead)
            ready.set()
        except DatabaseError as problem:  # the known prices stay in force
            logger.warning("prices could not be read", extra={"problem": repr(problem)})
        with suppress(TimeoutError):
            async with asyncio.timeout(pricing.every if ready.is_set() else 1.0):
                await changed.wait()
