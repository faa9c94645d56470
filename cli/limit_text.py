"""Limits as the commands write and read them: `tokens/day/llama-3=1000000`, in the words of a Rule's name."""

from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation

import msgspec
from uplion.control.v1.limit_pb2 import Limit as LimitMessage
from uplion.control.v1.limit_pb2 import LimitMeasure, LimitPeriod

from cli.output import CommandError, JsonObject
from ledger.limits import MONEY, NO_PERIOD, PERIODS, Limit

_SHADOW = "shadow:"
_MICROS = 1_000_000
FORMS = ", ".join(
    "/".join(part for part in (measure, "|".join(periods), "USD=N.NN" if measure in MONEY else "") if part)
    + ("" if measure in MONEY else "=N")
    for measure, periods in PERIODS.items()
)


def parse(text: str) -> Limit:
    """Reads one; raises CommandError. A model's name may hold slashes: it is the rest of the text."""
    name, found, amount = text.removeprefix(_SHADOW).rpartition("=")
    measure, *rest = name.split("/")
    try:
        period = rest.pop(0) if measure not in NO_PERIOD else ""
        currency = rest.pop(0) if measure in MONEY else ""
        number = Decimal(amount) * (_MICROS if measure in MONEY else 1)
        if not found or not 0 <= number < 1 << 63 or number != int(number):
            raise ValueError("an amount that cannot be counted")
        object_ = {"measure": measure, "period": period, "amount": int(number), "currency": currency}
        limit = msgspec.convert({**object_, "model": "/".join(rest), "shadow": text.startswith(_SHADOW)}, Limit)
    except (ValueError, OverflowError, IndexError, InvalidOperation):
        raise CommandError(
            f"{text!r} is no limit; write {FORMS}; a model's with its name after another slash,"
            " and one that only watches with shadow: before it"
        ) from None
    if problem := limit.problem():
        raise CommandError(f"{text!r}: {problem.field}: {problem.text}")
    return limit


def write(limit: Limit) -> str:
    """The text form of a limit."""
    amount = f"{Decimal(limit.amount) / _MICROS:f}" if limit.measure in MONEY else str(limit.amount)
    parts = (limit.measure, limit.period, limit.currency, limit.model)
    return f"{_SHADOW if limit.shadow else ''}{'/'.join(part for part in parts if part)}={amount}"


def messages(texts: Iterable[str] | None) -> list[LimitMessage] | None:
    """Values of --limit as messages of the admin API; None when there are none."""
    if not texts:
        return None
    return [
        LimitMessage(
            measure=LimitMeasure.Value(f"LIMIT_MEASURE_{limit.measure.upper()}"),
            period=LimitPeriod.Value(f"LIMIT_PERIOD_{(limit.period or 'unspecified').upper()}"),
            amount=limit.amount,
            model=limit.model,
            currency=limit.currency,
            shadow=limit.shadow,
        )
        for limit in map(parse, texts)
    ]


def texts(limits: Sequence[LimitMessage]) -> list[str]:
    """As the commands print them."""
    return [write(_limit(limit)) for limit in limits]


def _limit(message: LimitMessage) -> Limit:
    measure = LimitMeasure.Name(message.measure).removeprefix("LIMIT_MEASURE_").lower()
    period = LimitPeriod.Name(message.period).removeprefix("LIMIT_PERIOD_").lower().replace("unspecified", "")
    fields: JsonObject = {name: getattr(message, name) for name in ("amount", "model", "currency", "shadow")}
    return msgspec.convert({"measure": measure, "period": period, **fields}, Limit)


def complete(incomplete: str) -> list[str]:
    """For the shell: every form there is, up to its amount."""
    forms = [
        "/".join(part for part in (measure, period, "USD" if measure in MONEY else "") if part) + "="
        for measure, periods in PERIODS.items()
        for period in periods
    ]
    prefix = _SHADOW if incomplete.startswith(_SHADOW) else ""
    return [prefix + form for form in forms if (prefix + form).startswith(incomplete)]
