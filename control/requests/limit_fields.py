"""Limits as proto messages and as the database has them; ledger.limits defines which limits exist."""

from collections.abc import Iterable

import msgspec
from uplion.control.v1 import limit_pb2
from uplion.control.v1.limit_pb2 import LimitMeasure, LimitPeriod

from control.requests import fields
from ledger.limits import PERIODS, Limit, Measure, Period

_MOST = 50
_MODEL_CHARACTERS = 253
_MEASURES: dict[int, Measure] = {LimitMeasure.Value(f"LIMIT_MEASURE_{name.upper()}"): name for name in PERIODS}
_PERIODS: dict[int, Period] = {
    LimitPeriod.Value(f"LIMIT_PERIOD_{(name or 'unspecified').upper()}"): name
    for periods in PERIODS.values()
    for name in periods
}
_MEASURE_NUMBERS = {name: LimitMeasure.ValueType(number) for number, name in _MEASURES.items()}
_PERIOD_NUMBERS = {name: LimitPeriod.ValueType(number) for number, name in _PERIODS.items()}


def checked(asked: Iterable[limit_pb2.Limit]) -> str:
    """The limits as the database has them, a JSON array; raises INVALID_REQUEST naming the one that is wrong."""
    limits: list[Limit] = []
    for index, each in enumerate(asked):
        param = f"limits[{index}]"
        if index >= _MOST:
            raise fields.invalid("limits", f"must be at most {_MOST}")
        limit = _limit(param, each)
        if any(_counts_the_same(limit, other) for other in limits):
            raise fields.invalid(param, "counts what another limit of this list counts")
        limits.append(limit)
    return msgspec.json.encode(limits).decode()


def shown(stored: str) -> list[limit_pb2.Limit]:
    """The limits of a row."""
    return [
        limit_pb2.Limit(
            measure=_MEASURE_NUMBERS[limit.measure],
            period=_PERIOD_NUMBERS[limit.period],
            amount=limit.amount,
            model=limit.model,
            currency=limit.currency,
            shadow=limit.shadow,
        )
        for limit in msgspec.json.decode(stored, type=list[Limit])
    ]


def _limit(param: str, asked: limit_pb2.Limit) -> Limit:
    measure, period = _MEASURES.get(asked.measure), _PERIODS.get(asked.period)
    if measure is None:
        raise fields.invalid(f"{param}.measure", "must be one of " + ", ".join(_MEASURES.values()))
    if period is None:
        raise fields.invalid(f"{param}.period", "is not a known period")
    limit = Limit(
        measure=measure,
        period=period,
        amount=asked.amount,
        model=fields.text(f"{param}.model", asked.model, most=_MODEL_CHARACTERS),
        currency=asked.currency,
        shadow=asked.shadow,
    )
    if problem := limit.problem():
        raise fields.invalid(f"{param}.{problem.field}", problem.text)
    return limit


def _counts_the_same(one: Limit, other: Limit) -> bool:
    """One in shadow mode may stand beside one that refuses, to try out another amount."""
    return msgspec.structs.replace(one, amount=0) == msgspec.structs.replace(other, amount=0)
