"""Pricing: the versions of all prices, and what a ledger entry costs by the one that was in force when it ended."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from billing.entry import EPOCH, Entry
from billing.policy import BILL, WAIVE, Action
from ledger.prices import RateRow, Rates, token_cost

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Price:
    """One version of a model's price. A version never changes; a new price is a new version."""

    version: int
    model: str
    effective_from: datetime
    currency: str  # ISO 4217
    rates: RateRow


class Charge(NamedTuple):
    """A cost in units (see `ledger.prices`), and the price version that it was computed with."""

    price_version: int
    units: int
    currency: str


class _Version(NamedTuple):
    """A price with its rates as integers."""

    version: int
    effective_from: int  # microseconds since 1970, as Entry.end_microseconds
    currency: str
    rates: Rates

    def units(self, entry: Entry, action: Action) -> int:
        """What is billed of the entry."""
        if action == WAIVE:
            return 0
        rates = self.rates
        if action != BILL:
            return token_cost(entry.tokens, rates.input_token)
        units = token_cost(entry.tokens, rates.token) + (entry.compute_microseconds or 0) * rates.compute_microsecond
        return units + rates.request if entry.status == "completed" else units


class PriceList:
    """All versions of all prices at one moment; immutable."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self._by_model: dict[str, list[_Version]] = defaultdict(list)
        for price in sorted(prices, key=lambda price: (price.effective_from, price.version)):
            effective_from = (price.effective_from - EPOCH) // _MICROSECOND
            version = _Version(price.version, effective_from, price.currency, Rates.of(price.rates))
            self._by_model[price.model].append(version)

    def charge(self, entry: Entry, action: Action) -> Charge | None:
        """What the entry costs; None when its price or its usage is unknown, so that it is flagged as unpriced."""
        version = self._version(entry.model_served or entry.model, entry.end_microseconds)
        if version is None or (not entry.measured and entry.status == "completed" and action != WAIVE):
            return None
        return Charge(version.version, version.units(entry, action), version.currency)

    def _version(self, model: str, moment: int) -> _Version | None:
        """The latest version in force at that moment; None when the model had none, which is not a price of 0."""
        versions = self._by_model.get(model)
        if not versions:
            return None
        if moment >= versions[-1].effective_from:
            return versions[-1]
        position = bisect_right(versions, moment, key=lambda version: version.effective_from)
        return versions[position - 1] if position else None
