"""What an entry costs: a versioned price list and exact decimal arithmetic."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal, Inexact, localcontext

from billing.entry import Entry

_PER_MILLION = -6  # decimal shift: prices are per million tokens
# Exact or an exception: 10 digits of tokens times any sane price fit 100 digits, so nothing is ever rounded.
EXACT = Context(prec=100, traps=[Inexact])
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Price:
    """One version of a model's price. It never changes; a new price is a new version."""

    version: int
    model: str
    effective_from: datetime
    currency: str  # ISO 4217
    input_per_million_tokens: Decimal
    cached_per_million_tokens: Decimal | None  # None: as other input
    output_per_million_tokens: Decimal
    per_request: Decimal


@dataclass(frozen=True, slots=True)
class Charge:
    """A cost, and the price version that says so."""

    price_version: int
    cost: Decimal
    currency: str


class PriceList:
    """All versions of all prices at one moment; immutable."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._by_model: dict[str, list[Price]] = defaultdict(list)
        for price in sorted(prices, key=lambda price: (price.effective_from, price.version)):
            self._by_model[price.model].append(price)

    def price(self, model: str, moment: datetime) -> Price | None:
        """The latest price in force at that moment; None when the model had none, which is not a price of 0."""
        versions = self._by_model.get(model)
        if not versions:
            return None
        position = bisect_right(versions, moment, key=lambda price: price.effective_from)
        return versions[position - 1] if position else None

    def charge(self, entry: Entry) -> Charge | None:
        """What the entry costs; None when no price is known: counted and flagged, never invented."""
        price = self.price(entry.billed_model, entry.end_time)
        return None if price is None else Charge(price.version, cost(price, entry), price.currency)


def cost(price: Price, entry: Entry) -> Decimal:
    """Tokens as the worker counted them, however the attempt ended; the request's own price only when it completed."""
    cached_tokens = min(entry.cached_tokens, entry.input_tokens)
    with localcontext(EXACT):
        total = (
            (entry.input_tokens - cached_tokens) * price.input_per_million_tokens
            + cached_tokens * _cached_price(price)
            + entry.output_tokens * price.output_per_million_tokens
        ).scaleb(_PER_MILLION)
        return total + (price.per_request if entry.status == "completed" else _ZERO)


def _cached_price(price: Price) -> Decimal:
    cached = price.cached_per_million_tokens
    return price.input_per_million_tokens if cached is None else cached
