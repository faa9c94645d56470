"""Which rules concern a request, and check.lua's arguments for them: worked out once for a key and a model."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import msgspec

from authz.credentials.key_record import KeyRecord, owner
from authz.limits.prices import FREE, HighestRates, PriceTable
from authz.request_facts import RequestFacts
from common import names
from ledger.limits import CONCURRENCY, Amount, Counting, Level, Limit, Rule
from ledger.periods import Today, counter_seconds, today

_MAX_KEYS = 20_000  # about 2 kB each; building one that is not kept costs 50 us
_encode = msgspec.msgpack.encode
_T = TypeVar("_T")


class LedgerBalance(NamedTuple):
    """A balance that a plan needs of the ledger."""

    scope: str
    model: str
    period: str  # "2026-11-21", "2026-11" or "life"
    currency: str  # of a balance of money, else empty
    column: str  # LimitKind.balance


class Plan:
    """The rules for one key's requests for one model, today."""

    __slots__ = (
        "arguments",
        "caps",
        "counters",
        "headers",
        "holds_slot",
        "keys",
        "price",
        "rates",
        "record",
        "reserved",
        "rules",
        "used",
    )

    def __init__(self, record: KeyRecord, rules: tuple[Rule, ...], price: HighestRates, day: Today) -> None:
        self.record = record
        self.rules = rules
        self.price = price
        self.rates: list[tuple[str, bool]] = []  # rate hash, whether it counts tokens
        self.reserved: list[tuple[str, int]] = []  # field of the reserved hash, unit
        self.counters: list[str] = []  # of each rule: the counter it shares with all rules of its amount and scope
        self.caps = any(rule.limit.kind.caps_output and not rule.limit.shadow for rule in rules)
        self.holds_slot = any(rule.limit.kind.counting is Counting.RUNNING for rule in rules)
        self.headers = tuple(  # of requests, of tokens: the numbers of the enforced rules that x-ratelimit-* shows
            tuple(
                number
                for number, rule in enumerate(rules)
                if rule.limit.kind.header == header and not rule.limit.shadow
            )
            for header in ("requests", "tokens")
        )
        account = record.account
        self.keys = [
            names.reserved_key(account),
            names.reservations_key(account),
            names.reservation_amounts_key(account),
        ]
        balances: dict[str, dict[str, LedgerBalance]] = {}  # by period and field
        for rule in rules:
            limit = rule.limit
            if limit.kind.counting is Counting.BALANCE:
                period = day.name(limit.period)
                found = LedgerBalance(rule.scope, limit.model, period, limit.currency, limit.kind.balance)
                balances.setdefault(period, {}).setdefault(rule.field, found)
        lives = {day.name(rule.limit.period): counter_seconds(rule.limit.period) for rule in rules}
        lua_used = [
            [self._key(names.used_key(account, period)), lives[period], *fields] for period, fields in balances.items()
        ]
        self.used = [balance for fields in balances.values() for balance in fields.values()]
        places = [(period, field) for period, fields in balances.items() for field in fields]
        lua_rules: list[int] = []
        for rule in rules:
            counter, used = self._counter(rule, day, places)
            lua_rules += (rule.limit.kind.code, counter, used, rule.limit.amount, int(rule.limit.shadow))
        lua_rates = [value for key, tokens in self.rates for value in (self._key(key), int(tokens))]
        lua_reserved = [value for pair in self.reserved for value in pair]
        blob = _encode([lua_rates, lua_reserved, lua_used, lua_rules, price[1:]])
        self.arguments: tuple[str | bytes | int, ...] = (len(self.keys), *self.keys, blob)

    def units(self, request: RequestFacts, choice_tokens: int) -> tuple[int, ...]:
        """What a request takes whose choices may have so many tokens each, by `Amount`, as check.lua counts it."""
        output_tokens = choice_tokens * request.choices
        return request.input_tokens + output_tokens, self.price.millionths(request.input_tokens, output_tokens), 1

    def amounts(self, second: int, units: tuple[int, ...]) -> list[object]:
        """What is reserved for a request, as check.lua stores it (there in msgpack)."""
        amounts: list[str | int] = [value for field, unit in self.reserved for value in (field, units[unit])]
        return [second, units[Amount.TOKENS.value], amounts, [key for key, by_tokens in self.rates if by_tokens]]

    def _key(self, name: str) -> int:
        """Its number in KEYS."""
        return _number(self.keys, name)

    def _counter(self, rule: Rule, day: Today, places: list[tuple[str, str]]) -> tuple[int, int]:
        """The number of its rate or reserved field, and of its used field (0: none)."""
        limit, account = rule.limit, self.record.account
        kind, field = limit.kind, rule.field
        if kind.counting is Counting.WINDOW:
            key = names.rate_key(account, kind.unit, rule.scope, limit.model)
            self.counters.append(f"{key} {limit.amount}")
            return _number(self.rates, (key, kind.amount is Amount.TOKENS)), 0
        reserved = _number(self.reserved, (field, kind.amount.value))
        if kind.counting is Counting.RUNNING:
            self.counters.append(f"{account} {field} {limit.amount}")
            return reserved, 0
        period = day.name(limit.period)
        self.counters.append(f"{account} {field} {period} {limit.amount}")
        return reserved, places.index((period, field)) + 1


class _KeyPlans:
    """A key's plans."""

    __slots__ = ("day", "models", "plans", "priced", "prices", "record", "rules")

    def __init__(self, record: KeyRecord, defaults: "Defaults", day: Today, prices: Mapping[str, HighestRates]) -> None:
        self.record, self.day, self.prices = record, day, prices
        self.rules = record.rules + defaults.rules(record)
        self.models = {rule.limit.model for rule in self.rules}
        self.priced = any(rule.limit.kind.is_money for rule in self.rules)
        self.plans: dict[tuple[str, bool], Plan] = {}


@dataclass(frozen=True, slots=True)
class Defaults:
    """How many requests at once a key and an account have that no limit of their own says otherwise; 0: any number."""

    key: int = 0
    account: int = 0

    def rules(self, record: KeyRecord) -> tuple[Rule, ...]:
        """Those that the record needs. Tokens have no key, and their account's alone."""
        levels: list[tuple[Level, str, int]] = [("account", record.account, self.account)]
        if owner(record.id) is None:
            levels.append(("key", record.id, self.key))
        own = {rule.level for rule in record.rules if rule.limit.kind is CONCURRENCY and not rule.limit.model}
        return tuple(
            Rule(level, subject, Limit("concurrency", "", amount), default=True)
            for level, subject, amount in levels
            if amount and level not in own
        )


class Plans:
    """Keeps plans while the key's record, the day and the prices stay the same objects."""

    def __init__(
        self, prices: PriceTable, clock: Callable[[], float] = time.time, defaults: Defaults = Defaults()
    ) -> None:
        self._prices = prices
        self._defaults = defaults
        self._clock = clock
        self._today = today(clock())
        self._keys: dict[str, _KeyPlans] = {}

    @property
    def day(self) -> Today:
        now = self._clock()
        if not self._today.day_ends - 86_400 <= now < self._today.day_ends:
            self._today = today(now)
        return self._today

    def find(self, record: KeyRecord, model: str, *, reading: bool) -> Plan:
        """The plan for a request; one that reads takes no tokens, no money and no slot."""
        day, prices = self.day, self._prices.rates
        known = self._keys.get(record.id)
        if known is None or known.record is not record or known.day is not day or known.prices is not prices:
            known = self._keys[record.id] = _KeyPlans(record, self._defaults, day, prices)
            if len(self._keys) > _MAX_KEYS:
                del self._keys[next(iter(self._keys))]
        if model not in known.models and not (known.priced and model in prices):
            model = ""  # so that invented names make no plans
        plan = known.plans.get((model, reading))
        if plan is None:
            price = prices.get(model, FREE) if known.priced else FREE
            rules = tuple(rule for rule in known.rules if _concerns(rule.limit, model, price, reading=reading))
            plan = known.plans[model, reading] = Plan(record, rules, price, day)
        return plan


def _concerns(limit: Limit, model: str, price: HighestRates, *, reading: bool) -> bool:
    if limit.model and limit.model != model:
        return False
    if reading:
        return limit.kind.counts_readings
    return not limit.kind.is_money or (price is not FREE and limit.currency == price.currency)


def _number(places: list[_T], place: _T) -> int:
    """Its number in the list, to which it is added if it is new."""
    if place not in places:
        places.append(place)
    return places.index(place) + 1
