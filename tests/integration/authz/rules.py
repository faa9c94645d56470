"""Limits as tests write them."""

from typing import Any

import msgspec

from ledger.limits import Limit


def as_json(limits: tuple[Limit, ...]) -> str:
    assert not [problem for limit in limits if (problem := limit.problem())]
    return msgspec.json.encode(limits).decode()


def requests(amount: int, **more: Any) -> Limit:
    """A limit of requests a minute."""
    return Limit("requests", "minute", amount, **more)


def tokens(amount: int, period: Any = "life", **more: Any) -> Limit:
    """A budget of tokens, or with "minute" a limit."""
    return Limit("tokens", period, amount, **more)


def cost(amount: float, period: Any = "life", currency: str = "USD", **more: Any) -> Limit:
    """A budget of money."""
    return Limit("cost", period, round(amount * 1_000_000), currency=currency, **more)


def at_once(amount: int, **more: Any) -> Limit:
    """A limit of requests at once."""
    return Limit("concurrency", "", amount, **more)
