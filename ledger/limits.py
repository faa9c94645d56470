"""What a limit is: the one definition that control checks and stores, authz enforces and clients read about."""

from typing import Literal, NamedTuple

import msgspec

Measure = Literal["requests", "tokens", "cost", "concurrency"]
Period = Literal["minute", "day", "month", "life", ""]
Level = Literal["account", "project", "key"]

# Windows slide (minute); days and months are calendar ones, UTC; "" is this very moment.
PERIODS: dict[Measure, tuple[Period, ...]] = {
    "requests": ("minute",),
    "tokens": ("minute", "day", "month", "life"),
    "cost": ("day", "month", "life"),
    "concurrency": ("",),
}
_MOST = (1 << 53) - 1  # exact in Valkey's Lua, whose numbers are doubles


class Limit(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One limit of an account, a project or a key.

    `amount` counts requests, tokens, requests at once, or millionths of `currency`. A limit with a `model` counts that
    model's requests only. One in shadow decides, counts and is logged, and refuses nothing.
    """

    measure: Measure
    period: Period
    amount: int
    model: str = ""
    currency: str = ""  # ISO 4217; for "cost" only
    shadow: bool = False

    def problem(self) -> str | None:
        """What is wrong with it, for whoever wrote it; None when it can be enforced."""
        periods = PERIODS[self.measure]
        if self.period not in periods:
            return f"a limit of {self.measure} counts per {' or '.join(periods) or 'moment, so it has no period'}"
        if not 0 <= self.amount <= _MOST:
            return f"an amount is from 0 to {_MOST}"
        if (self.measure == "cost") != bool(self.currency):
            return "a limit of cost, and only that, names its currency"
        if self.currency and not (len(self.currency) == 3 and self.currency.isascii() and self.currency.isupper()):
            return "a currency is three capital letters, such as USD"
        return None


class Rule(NamedTuple):
    """A limit and where it stands."""

    level: Level
    subject: str  # the account's, project's or key's id
    limit: Limit

    @property
    def name(self) -> str:
        """How answers, logs and `uplion explain` call it: `key/tokens/day`, `account/cost/month/USD/llama-3`."""
        limit = self.limit
        parts = (self.level, limit.measure, limit.period, limit.currency, limit.model)
        return "/".join(part for part in parts if part)

    @property
    def scope(self) -> str:
        """The counter's owner within its account, as Valkey's fields and the ledger's balances name it."""
        return scope(self.level, self.subject)


def scope(level: Level, subject: str) -> str:
    """`a`, `p:<project>` or `k:<key>`."""
    return "a" if level == "account" else f"{level[0]}:{subject}"
