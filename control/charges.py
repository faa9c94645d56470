"""The cost of a group of usage by class: tokens times the rates of the price version it was billed with."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any, Protocol

from uplion.control.v1.usage_pb2 import UsageClass

from ledger.prices import PER_COMPUTE_SECOND, PER_REQUEST, token_price
from ledger.usage_columns import COMPUTE_SECONDS, INPUT, TOKEN_CLASSES, TOKEN_COLUMNS, TokenClass, disjoint

_EXACT = Context(prec=200)
_ZERO = Decimal(0)

COMPUTE = UsageClass.USAGE_CLASS_COMPUTE
REQUEST = UsageClass.USAGE_CLASS_REQUEST
UNKNOWN = UsageClass.USAGE_CLASS_UNSPECIFIED
TOKENS = {UsageClass.Value(f"USAGE_CLASS_{each.name.upper()}"): each for each in TOKEN_CLASSES}


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
    unit_price: Decimal | None  # of one token, request or second; None: it has no price


def charges(group: Group, rates: Rates | None) -> list[Charge]:
    """The classes of a group's use; their costs add up to the group's cost exactly.

    `rates` are those of the group's price version, None when it has none. What remains after
    tokens and the engine's time is the cost per request.
    """
    priced = list(_measured(group, rates))
    rest = _EXACT.subtract(group["cost"], total(priced))
    requests = Decimal(group["requests"])
    if rates is None:
        known = [Charge(UNKNOWN, requests, rest, None)] if rest else []
        return [*priced, *known, *([Charge(REQUEST, requests, _ZERO, None)] if requests else [])]
    if requests or rest:
        priced.append(Charge(REQUEST, requests, rest, rates[PER_REQUEST]))
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


def _measured(group: Group, rates: Rates | None) -> Iterator[Charge]:
    """Tokens, each in one class only, and the engine's time."""
    policy = str(group["policy"])
    tokens = disjoint([group[name] for name in TOKEN_COLUMNS])
    for (usage_class, each), count in zip(TOKENS.items(), tokens, strict=True):
        if count:
            price = None if rates is None else token_price(rates, each)
            yield _charge(usage_class, Decimal(count), price, billed=_bills_tokens(policy, each))
    if seconds := group[COMPUTE_SECONDS]:
        yield _charge(COMPUTE, seconds, None if rates is None else rates[PER_COMPUTE_SECOND], billed=not policy)


def _bills_tokens(policy: str, token_class: TokenClass) -> bool:
    return not policy or (policy == "input_only" and INPUT in (token_class, token_class.part_of))


def _charge(
    usage_class: UsageClass.ValueType, quantity: Decimal, unit_price: Decimal | None, *, billed: bool
) -> Charge:
    """Without a cost where it is not billed, or has no price."""
    cost = _EXACT.multiply(quantity, unit_price) if billed and unit_price is not None else _ZERO
    return Charge(usage_class, quantity, cost, unit_price)
