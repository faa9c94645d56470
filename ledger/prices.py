"""Price arithmetic: costs as integers of 10^-18 of a currency, so that none is ever rounded.

A rate has at most 12 decimals and is for a million tokens or for a second, so a token, a microsecond and a request each
cost a whole number of these units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from operator import mul
from typing import Protocol, Self

from ledger.usage_columns import INPUT, TOKEN_CLASSES, TokenClass, disjoint

UNIT_DECIMALS = 18
_RATE_DECIMALS = 12
_UNITS_PER_TRILLIONTH: int = 10 ** (UNIT_DECIMALS - 12)
_WIDE = Context(prec=200)

PER_REQUEST = "per_request"
PER_COMPUTE_SECOND = "per_gpu_second"
RATES = (*(each.rate for each in TOKEN_CLASSES), PER_REQUEST, PER_COMPUTE_SECOND)  # columns of `prices`


class RateRow(Protocol):
    """A row of `prices`, by the names of its columns; null where RATES allows it."""

    def __getitem__(self, name: str, /) -> Decimal | None: ...


@dataclass(frozen=True, slots=True)
class Rates:
    """A price's rates, in units."""

    token: tuple[int, ...]  # of a token of each class that is not in one of its parts, as in TOKEN_CLASSES
    input_token: tuple[int, ...]  # the same, with 0 for all but input and its parts
    request: int  # of a completed request
    compute_microsecond: int

    @classmethod
    def of(cls, row: RateRow) -> Self:
        """Raises ValueError for a rate with more decimals than a price has."""
        token = tuple(_integer(token_rate(row, each)) for each in TOKEN_CLASSES)
        return cls(
            token,
            tuple(
                units if INPUT in (each, each.part_of) else 0 for each, units in zip(TOKEN_CLASSES, token, strict=True)
            ),
            _integer(row[PER_REQUEST]) * _UNITS_PER_TRILLIONTH,
            _integer(row[PER_COMPUTE_SECOND]),
        )

    def dearest_token(self, whole: TokenClass) -> int:
        """The most that a token of `whole` or of one of its parts costs."""
        pairs = zip(TOKEN_CLASSES, self.token, strict=True)
        return max(units for each, units in pairs if whole in (each, each.part_of))


def token_cost(tokens: Sequence[int], rates: Sequence[int]) -> int:
    """The cost of tokens, in units; `rates` are `Rates.token` or `Rates.input_token`."""
    units: int = sum(map(mul, disjoint(tokens), rates))
    return units


def token_rate(row: RateRow, token_class: TokenClass) -> Decimal:
    """What a million tokens of the class cost: by its own rate, or by that of the class it is a part of."""
    own = row[token_class.rate]
    if own is None and token_class.part_of is not None:
        return token_rate(row, token_class.part_of)
    return own or Decimal(0)


def token_price(row: RateRow, token_class: TokenClass) -> Decimal:
    """What one token of the class costs."""
    return token_rate(row, token_class).scaleb(-6, _WIDE)


def amount(units: int) -> Decimal:
    """Units as money."""
    return Decimal(units).scaleb(-UNIT_DECIMALS, _WIDE)


def in_trillionths(units: int) -> int:
    """Units as 10^-12 of the currency, rounded up: estimates are kept so in Valkey, whose scripts count in doubles."""
    return -(-units // _UNITS_PER_TRILLIONTH)


def to_units(cost: Decimal) -> int:
    """A cost of the ledger in units."""
    return int(cost.scaleb(UNIT_DECIMALS, _WIDE))


def _integer(rate: Decimal | None) -> int:
    """A rate in 10^-12 of its currency, which is in units per token or per microsecond."""
    scaled = (rate or Decimal(0)).scaleb(_RATE_DECIMALS, _WIDE)
    if scaled != scaled.to_integral_value():
        raise ValueError(f"a price has at most {_RATE_DECIMALS} decimals")
    return int(scaled)
