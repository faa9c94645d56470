"""What a group of usage cost, told apart by classes of use: tokens times the rates of the price it was billed with."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any, Protocol

from uplion.control.v1.statement_pb2 import UsageClass

_EXACT = Context(prec=200)
_MILLION = 6
_ZERO = Decimal(0)

INPUT = UsageClass.USAGE_CLASS_INPUT
CACHED_INPUT = UsageClass.USAGE_CLASS_CACHED_INPUT
CACHE_WRITE = UsageClass.USAGE_CLASS_CACHE_WRITE
OUTPUT = UsageClass.USAGE_CLASS_OUTPUT
REASONING = UsageClass.USAGE_CLASS_REASONING
COMPUTE = UsageClass.USAGE_CLASS_COMPUTE
REQUEST = UsageClass.USAGE_CLASS_REQUEST
UNKNOWN = UsageClass.USAGE_CLASS_UNSPECIFIED
_INPUTS = (INPUT, CACHED_INPUT, CACHE_WRITE)
# Where a class has no rate of its own, it has that of another one.
_RATES = {
    INPUT: ("input_per_million_tokens", "input_per_million_tokens"),
    CACHED_INPUT: ("cached_per_million_tokens", "input_per_million_tokens"),
    CACHE_WRITE: ("cache_write_per_million_tokens", "input_per_million_tokens"),
    OUTPUT: ("output_per_million_tokens", "output_per_million_tokens"),
    REASONING: ("reasoning_per_million_tokens", "output_per_million_tokens"),
}


class Columns(Protocol):
    """A row, by the names of its columns."""

    def __getitem__(self, name: str, /) -> Any: ...


Rates = Columns  # of `prices`
Group = Columns  # of a rollup, or the sums of several with one price and policy


@dataclass(frozen=True, slots=True)
class Charge:
    """One class of use in a group."""

    usage_class: UsageClass.ValueType
    quantity: Decimal  # tokens, requests, seconds
    cost: Decimal  # exact
    unit_price: Decimal | None  # of one token, request or second; None: no price was known


def charges(group: Group, rates: Rates | None) -> list[Charge]:
    """The classes of a group's use; their costs add up to the group's cost exactly.

    `rates` are those of the group's price version, None when it has none. What the tokens and the engine's time do not
    explain is what requests cost by themselves.
    """
    priced = [
        _charge(usage_class, quantity, _unit_price(usage_class, rates), str(group["policy"]))
        for usage_class, quantity in _quantities(group)
        if quantity
    ]
    rest = _EXACT.subtract(group["cost"], total(priced))
    requests = Decimal(group["requests"])
    if rates is None:
        known = [Charge(UNKNOWN, requests, rest, None)] if rest else []
        return [*priced, *known, *([Charge(REQUEST, requests, _ZERO, None)] if requests else [])]
    if requests or rest:
        priced.append(Charge(REQUEST, requests, rest, rates["per_request"]))
    return priced


def total(parts: Iterable[Charge]) -> Decimal:
    """The sum of their costs, exactly."""
    cost = _ZERO
    for part in parts:
        cost = _EXACT.add(cost, part.cost)
    return cost


def added(parts: Iterable[Charge]) -> list[Charge]:
    """One charge for each class, in the classes' order; unit prices may differ and are left out."""
    sums: dict[UsageClass.ValueType, tuple[Decimal, Decimal]] = {}
    for part in parts:
        quantity, cost = sums.get(part.usage_class, (_ZERO, _ZERO))
        sums[part.usage_class] = _EXACT.add(quantity, part.quantity), _EXACT.add(cost, part.cost)
    return [Charge(usage_class, *sums[usage_class], None) for usage_class in sorted(sums)]


def _quantities(group: Group) -> Iterable[tuple[UsageClass.ValueType, Decimal]]:
    """Every token in one class; parts are never larger than what they are part of, as billing has it too."""
    cached = min(group["cached_tokens"], group["input_tokens"])
    cache_write = min(group["cache_write_tokens"], group["input_tokens"] - cached)
    reasoning = min(group["reasoning_tokens"], group["output_tokens"])
    return (
        (INPUT, Decimal(group["input_tokens"] - cached - cache_write)),
        (CACHED_INPUT, Decimal(cached)),
        (CACHE_WRITE, Decimal(cache_write)),
        (OUTPUT, Decimal(group["output_tokens"] - reasoning)),
        (REASONING, Decimal(reasoning)),
        (COMPUTE, group["compute_seconds"]),
    )


def _unit_price(usage_class: UsageClass.ValueType, rates: Rates | None) -> Decimal | None:
    if rates is None:
        return None
    if usage_class == COMPUTE:
        second: Decimal = rates["per_gpu_second"]
        return second
    own, other = _RATES[usage_class]
    rate: Decimal = rates[other] if rates[own] is None else rates[own]
    return rate.scaleb(-_MILLION, _EXACT)


def _charge(usage_class: UsageClass.ValueType, quantity: Decimal, unit_price: Decimal | None, policy: str) -> Charge:
    billed = not policy or (policy == "input_only" and usage_class in _INPUTS)
    cost = _EXACT.multiply(quantity, unit_price) if billed and unit_price is not None else _ZERO
    return Charge(usage_class, quantity, cost, unit_price)
