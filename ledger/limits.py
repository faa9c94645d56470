"""Limits: the one table of what can be limited, and a limit as accounts, projects and keys have it.

control validates by this table, authz counts and refuses by it, billing keeps the balances that it names, and the CLI
reads and writes its forms. A new kind of limit is a row in `KINDS` (and in `Measure`, where it measures something new);
docs/adding.md lists what else it needs.
"""

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Literal, NamedTuple

import msgspec

from common import names
from ledger import currencies

Measure = Literal["requests", "tokens", "cost", "concurrency"]
Period = Literal["minute", "day", "month", "life", ""]
Level = Literal["account", "project", "key"]

_MAX_AMOUNT = (1 << 53) - 1  # exact in Valkey's Lua, whose numbers are doubles
_MILLION = 1_000_000


class Amount(Enum):
    """What one request adds to a count. The value is its position in check.lua's `units`."""

    TOKENS = 0  # of input and output
    MONEY = 1  # millionths of a currency
    ONE = 2  # the request itself


class Counting(Enum):
    """Where the count is kept, and so how it falls again."""

    WINDOW = "window"  # rate hash in Valkey: a sliding minute
    RUNNING = "running"  # reserved hash in Valkey: falls when the request ends
    BALANCE = "balance"  # the ledger's balance, copied to a used hash in Valkey, plus what running requests reserved


@dataclass(frozen=True, slots=True)
class LimitKind:
    """A way to limit. `refusal` may name {amount}, {left}, {per}, {whose} and {rule}."""

    measure: Measure
    periods: tuple[Period, ...]  # minutes slide; days and months are calendar ones, UTC; "" is this moment
    counting: Counting
    amount: Amount
    unit: str  # first part of its fields' names in Valkey
    refusal: str
    noun: str = ""  # of its amounts in sentences; empty: they are money and name their currency
    balance: str = ""  # the column of the ledger's `balances`, or `cost` of `spending`
    header: Literal["requests", "tokens", ""] = ""  # which x-ratelimit-* headers show it; empty: none

    @property
    def code(self) -> int:
        """How check.lua calls it."""
        return KINDS.index(self)

    @property
    def is_money(self) -> bool:
        return self.amount is Amount.MONEY

    @property
    def caps_output(self) -> bool:
        """Whether what is left bounds the length of an answer."""
        return self.amount in (Amount.TOKENS, Amount.MONEY)

    @property
    def counts_readings(self) -> bool:
        """Whether a request that runs no model counts too."""
        return self.counting is Counting.WINDOW and self.amount is Amount.ONE

    def field(self, scope: str, model: str = "", currency: str = "") -> str:
        """Its field in the reserved and used hashes of an account."""
        return names.counter_field(self.unit, scope, model, currency)

    def text(self, amount: int, currency: str = "") -> str:
        """An amount in a sentence: `7 requests`, `0.50 USD`."""
        return money(amount, currency) if self.is_money else f"{amount} {self.noun}"


_BUDGET_REFUSAL = "The budget of {amount}{per} of {whose} has {left} left ({rule}), too little for this request"
_CALENDAR: tuple[Period, ...] = ("day", "month", "life")

REQUESTS_PER_MINUTE = LimitKind(
    "requests",
    ("minute",),
    Counting.WINDOW,
    Amount.ONE,
    unit="n",
    noun="requests",
    header="requests",
    refusal="The limit of {amount}{per} of {whose} is reached ({rule})",
)
TOKENS_PER_MINUTE = LimitKind(
    "tokens",
    ("minute",),
    Counting.WINDOW,
    Amount.TOKENS,
    unit="t",
    noun="tokens",
    header="tokens",
    refusal="The limit of {amount}{per} of {whose} has {left} left ({rule}), too few for this request",
)
TOKEN_BUDGET = LimitKind(
    "tokens",
    _CALENDAR,
    Counting.BALANCE,
    Amount.TOKENS,
    unit="t",
    noun="tokens",
    balance="tokens",
    header="tokens",
    refusal=_BUDGET_REFUSAL,
)
COST_BUDGET = LimitKind(
    "cost",
    _CALENDAR,
    Counting.BALANCE,
    Amount.MONEY,
    unit="c",
    balance="cost",
    refusal=_BUDGET_REFUSAL,
)
CONCURRENCY = LimitKind(
    "concurrency",
    ("",),
    Counting.RUNNING,
    Amount.ONE,
    unit="n",
    noun="requests at once",
    refusal="The limit of {amount} of {whose} is reached ({rule})",
)
KINDS = (REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE, TOKEN_BUDGET, COST_BUDGET, CONCURRENCY)
"""The table, in the order of check.lua's numbers."""
_BY_NAME = MappingProxyType({(kind.measure, period): kind for kind in KINDS for period in kind.periods})
BALANCES = MappingProxyType({kind.unit: kind for kind in KINDS if kind.counting is Counting.BALANCE})
"""The kinds that the ledger counts, by unit."""
PERIODS = MappingProxyType(
    {measure: tuple(period for of, period in _BY_NAME if of == measure) for measure, _ in _BY_NAME}
)
"""Every measure, in the table's order, and its periods."""
MONEY = frozenset(kind.measure for kind in KINDS if kind.is_money)
"""The measures whose limits name a currency and whose amounts are its millionths."""


NO_PERIOD = frozenset(kind.measure for kind in KINDS if "" in kind.periods)
"""The measures that count the present moment."""


class Limit(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One limit of an account, a project or a key.

    `amount` counts requests, tokens, requests at once, or millionths of `currency`. A limit with a `model` counts that
    model's requests only. One in shadow is evaluated, counted and logged, and refuses nothing.
    """

    measure: Measure
    period: Period
    amount: int
    model: str = ""
    currency: str = ""  # ISO 4217; where the measure is money, and only there
    shadow: bool = False

    @property
    def kind(self) -> LimitKind:
        """Its row of the table; raises KeyError when `problem` says that there is none."""
        return _BY_NAME[self.measure, self.period]

    def problem(self) -> "LimitProblem | None":
        """Why it cannot be enforced; None: it can."""
        periods = PERIODS[self.measure]
        if self.period not in periods:
            per = " or ".join(period for period in periods if period)
            text = f"a limit of {self.measure} counts per {per or 'moment, so it has no period'}"
            return LimitProblem("period", text)
        if not 0 <= self.amount <= _MAX_AMOUNT:
            return LimitProblem("amount", f"must be from 0 to {_MAX_AMOUNT}")
        if self.kind.is_money != bool(self.currency):
            text = f"a limit of {' or '.join(sorted(MONEY))}, and only that, names its currency"
            return LimitProblem("currency", text)
        if self.currency and (wrong := currencies.problem(self.currency)):
            return LimitProblem("currency", wrong)
        return None


class LimitProblem(NamedTuple):
    """Which field of a limit is wrong, and why, in words for its author."""

    field: str
    text: str


class Rule(NamedTuple):
    """A limit and the account, project or key that has it."""

    level: Level
    subject: str  # the account's, project's or key's id
    limit: Limit
    default: bool = False  # of the platform, where the subject has no such limit of its own

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

    @property
    def field(self) -> str:
        """Its field in the reserved and used hashes of its account."""
        return self.limit.kind.field(self.scope, self.limit.model, self.limit.currency)


def scope(level: Level, subject: str) -> str:
    """`a`, `p:<project>` or `k:<key>`."""
    return "a" if level == "account" else f"{level[0]}:{subject}"


def money(millionths: int, currency: str) -> str:
    """`12.50 USD`: at least two decimals, at most six."""
    whole, rest = divmod(millionths, _MILLION)
    decimals = f"{rest:06}".rstrip("0").ljust(2, "0")
    return f"{whole}.{decimals} {currency}"
