"""What an entry costs: a versioned price list and exact arithmetic, in whole units of 10^-18 of the currency."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Context, Decimal
from typing import NamedTuple

from billing.entry import EPOCH, Entry
from billing.policy import BILL, WAIVE, Action

# Prices have 12 decimals and are per million tokens, so 18 decimals hold every cost exactly, and integers add fast.
_UNIT_DECIMALS = 18
_PRICE_DECIMALS = 12
_UNITS_PER_PRICE_UNIT = 10 ** (_UNIT_DECIMALS - _PRICE_DECIMALS)
_MICROSECOND = timedelta(microseconds=1)
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
    cache_write_per_million_tokens: Decimal | None = None  # None: as other input
    reasoning_per_million_tokens: Decimal | None = None  # None: as other output
    per_gpu_second: Decimal = Decimal(0)


class Charge(NamedTuple):
    """A cost in units, and the price version that says so."""

    price_version: int
    units: int
    currency: str


class _Rates:
    """A price as integers: units per token, per request and per microsecond of an engine."""

    __slots__ = (
        "cache_write",
        "cached",
        "compute",
        "currency",
        "effective_from",
        "input",
        "output",
        "reasoning",
        "request",
        "version",
    )

    def __init__(self, price: Price) -> None:
        self.version, self.currency = price.version, price.currency
        self.effective_from = (price.effective_from - EPOCH) // _MICROSECOND  # as Entry.end_microseconds
        self.input = _integer(price.input_per_million_tokens)
        self.cached = _integer(price.cached_per_million_tokens, self.input)
        self.cache_write = _integer(price.cache_write_per_million_tokens, self.input)
        self.output = _integer(price.output_per_million_tokens)
        self.reasoning = _integer(price.reasoning_per_million_tokens, self.output)
        self.request = _integer(price.per_request) * _UNITS_PER_PRICE_UNIT
        self.compute = _integer(price.per_gpu_second)

    def units(self, entry: Entry, action: Action) -> int:
        """What is billed of the entry. Conditional expressions, because a call of `min` takes four times as long."""
        if action == WAIVE:
            return 0
        inputs, cached, cache_write = entry.input_tokens, entry.cached_tokens, entry.cache_write_tokens
        cached = cached if cached < inputs else inputs  # a part of the input, as are those written to a cache
        plain = inputs - cached
        cache_write = cache_write if cache_write < plain else plain
        units = (plain - cache_write) * self.input + cached * self.cached + cache_write * self.cache_write
        if action == BILL:
            outputs, reasoning = entry.output_tokens, entry.reasoning_tokens
            reasoning = reasoning if reasoning < outputs else outputs
            units += (outputs - reasoning) * self.output + reasoning * self.reasoning
            units += (entry.compute_microseconds or 0) * self.compute
            if entry.status == "completed":
                units += self.request
        return units


class PriceList:
    """All versions of all prices at one moment; immutable."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._by_model: dict[str, list[_Rates]] = defaultdict(list)
        for price in sorted(prices, key=lambda price: (price.effective_from, price.version)):
            self._by_model[price.model].append(_Rates(price))

    def charge(self, entry: Entry, action: Action) -> Charge | None:
        """What the entry costs; None when its price or what it used is unknown: counted and flagged, not invented."""
        rates = self._rates(entry.model_served or entry.model, entry.end_microseconds)
        if rates is None or (not entry.measured and entry.status == "completed" and action != WAIVE):
            return None
        return Charge(rates.version, rates.units(entry, action), rates.currency)

    def _rates(self, model: str, moment: int) -> _Rates | None:
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


def _integer(price: Decimal | None, default: int = 0) -> int:
    """A price in 10^-12 of its currency; `default` for one that is not set."""
    if price is None:
        return default
    scaled = price.scaleb(_PRICE_DECIMALS, _WIDE)
    if scaled != scaled.to_integral_value():
        raise ValueError(f"a price has at most {_PRICE_DECIMALS} decimals")
    return int(scaled)
