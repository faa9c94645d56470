"""What an entry costs: a versioned price list and exact arithmetic, in whole units of 10^-18 of the currency."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal
from typing import NamedTuple

from billing.entry import Entry

# Prices have 12 decimals and are per million tokens, so 18 decimals hold every cost exactly, and integers add fast.
_UNIT_DECIMALS = 18
_PRICE_DECIMALS = 12
_UNITS_PER_PRICE_UNIT = 10 ** (_UNIT_DECIMALS - _PRICE_DECIMALS)
_WIDE = Context(prec=200)


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


class Charge(NamedTuple):
    """A cost in units, and the price version that says so."""

    price_version: int
    units: int
    currency: str


class _Rates:
    """A price as integers: units per token, and per request."""

    __slots__ = ("cached", "currency", "effective_from", "input", "output", "request", "version")

    def __init__(self, price: Price) -> None:
        self.version, self.currency, self.effective_from = price.version, price.currency, price.effective_from
        self.input = _integer(price.input_per_million_tokens)
        cached = price.cached_per_million_tokens
        self.cached = self.input if cached is None else _integer(cached)
        self.output = _integer(price.output_per_million_tokens)
        self.request = _integer(price.per_request) * _UNITS_PER_PRICE_UNIT


class PriceList:
    """All versions of all prices at one moment; immutable."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._by_model: dict[str, list[_Rates]] = defaultdict(list)
        for price in sorted(prices, key=lambda price: (price.effective_from, price.version)):
            self._by_model[price.model].append(_Rates(price))

    def charge(self, entry: Entry) -> Charge | None:
        """What the entry costs; None when no price is known: counted and flagged, never invented.

        Tokens as the worker counted them, however the attempt ended; the request's own price only when it completed.
        """
        rates = self._rates(entry.billed_model, entry.end_time)
        if rates is None:
            return None
        cached_tokens = min(entry.cached_tokens, entry.input_tokens)
        units = (
            (entry.input_tokens - cached_tokens) * rates.input
            + cached_tokens * rates.cached
            + entry.output_tokens * rates.output
        )
        if entry.status == "completed":
            units += rates.request
        return Charge(rates.version, units, rates.currency)

    def _rates(self, model: str, moment: datetime) -> _Rates | None:
        """The latest price in force at that moment; None when the model had none, which is not a price of 0."""
        versions = self._by_model.get(model)
        if not versions:
            return None
        if moment >= versions[-1].effective_from:
            return versions[-1]
        position = bisect_right(versions, moment, key=lambda rates: rates.effective_from)
        return versions[position - 1] if position else None


def amount(units: int) -> Decimal:
    """Units as money."""
    return Decimal(units).scaleb(-_UNIT_DECIMALS, _WIDE)


def _integer(price: Decimal) -> int:
    scaled = price.scaleb(_PRICE_DECIMALS, _WIDE)
    if scaled != scaled.to_integral_value():
        raise ValueError(f"a price has at most {_PRICE_DECIMALS} decimals")
    return int(scaled)
