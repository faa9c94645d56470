"""Which rules concern a request, and what check.lua must be told of them: worked out once for a key and a model."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from authz.credentials.key_record import KeyRecord
from authz.limits.prices import FREE, PriceTable, Rates
from common import names
from ledger.limits import Limit, Rule
from ledger.periods import Today, counter_seconds, today

_MOST_KEYS = 20_000  # about 2 kB each; one that is not here costs 50 us
_FIRST_KEYS = 3  # of KEYS: reserved, reservations, reservation amounts
_REQUESTS, _TOKENS, _TOKEN_BUDGET, _MONEY_BUDGET, _AT_ONCE = range(5)  # check.lua's kinds
_TOKEN_UNIT, _MONEY_UNIT, _SLOT_UNIT = range(3)
_encode = msgspec.msgpack.encode


class Plan:
    """The rules for one key's requests for one model, today."""

    __slots__ = ("arguments", "caps", "counters", "keys", "price", "rates", "record", "reserved", "rules", "used")

    def __init__(self, record: KeyRecord, rules: tuple[Rule, ...], price: Rates, day: Today) -> None:
        self.record = record
        self.rules = rules
        self.price = price
        self.rates: list[tuple[str, bool]] = []  # rate hash, whether it counts tokens
        self.reserved: list[tuple[str, int]] = []  # field of the reserved hash, unit
        self.used: list[tuple[str, str, str, str]] = []  # what is read of the ledger: scope, model, period, currency
        self.counters: list[str] = []  # of each rule: what it counts in, whoever else does
        self.caps = any(rule.limit.measure in ("tokens", "cost") and not rule.limit.shadow for rule in rules)
        account = record.account
        self.keys = [
            names.reserved_key(account),
            names.reservations_key(account),
            names.reservation_amounts_key(account),
        ]
        groups: dict[str, list[int | str]] = {}
        order: list[tuple[str, str]] = []
        for rule in rules:
            limit = rule.limit
            if limit.measure in ("tokens", "cost") and limit.period != "minute":
                period = day.name(limit.period)
                field = _field(rule)
                group = groups.setdefault(period, [self._key(names.used_key(account, period))])
                if len(group) == 1:
                    group.append(counter_seconds(limit.period))
                if field not in group:
                    group.append(field)
        for period, group in groups.items():
            order += [(period, str(field)) for field in group[2:]]
        lua_rules: list[int] = []
        for rule in rules:
            limit = rule.limit
            kind, counter, number = self._counter(rule, day, order)
            lua_rules += (kind, counter, number, limit.amount, int(limit.shadow))
        places = {(day.name(rule.limit.period), _field(rule)): rule for rule in rules}
        self.used = [
            (places[place].scope, places[place].limit.model, place[0], places[place].limit.currency) for place in order
        ]
        lua_rates = [value for key, tokens in self.rates for value in (self._key(key), int(tokens))]
        lua_reserved = [value for pair in self.reserved for value in pair]
        blob = _encode([lua_rates, lua_reserved, list(groups.values()), lua_rules, price[1:]])
        self.arguments: tuple[str | bytes | int, ...] = (len(self.keys), *self.keys, blob)

    def cost(self, input_tokens: int, output_tokens: int) -> int:
        """Millionths that are reserved for a request, as check.lua counts them."""
        return self.price.millionths(input_tokens, output_tokens)

    def amounts(self, second: int, tokens: int, cost: int) -> list[Any]:
        """What is held for a request, as check.lua stores it (there in msgpack)."""
        units = (tokens, cost, 1)
        amounts: list[str | int] = [value for field, unit in self.reserved for value in (field, units[unit])]
        return [second, tokens, amounts, [key for key, by_tokens in self.rates if by_tokens]]

    @property
    def holds_slot(self) -> bool:
        return any(unit == _SLOT_UNIT for _, unit in self.reserved)

    def _key(self, name: str) -> int:
        """Its number in KEYS."""
        if name not in self.keys:
            self.keys.append(name)
        return self.keys.index(name) + 1

    def _counter(self, rule: Rule, day: Today, order: list[tuple[str, str]]) -> tuple[int, int, int]:
        """check.lua's kind of rule, the number of its rate or reserved field, and of its used field (0: none)."""
        limit = rule.limit
        if limit.period == "minute":
            tokens = limit.measure == "tokens"
            key = names.rate_key(self.record.account, "t" if tokens else "n", rule.scope, limit.model)
            self.counters.append(f"{key} {limit.amount}")
            return (_TOKENS if tokens else _REQUESTS), _number(self.rates, (key, tokens)), 0
        field = _field(rule)
        if limit.measure == "concurrency":
            self.counters.append(f"{self.record.account} {field} {limit.amount}")
            return _AT_ONCE, _number(self.reserved, (field, _SLOT_UNIT)), 0
        period = day.name(limit.period)
        self.counters.append(f"{self.record.account} {field} {period} {limit.amount}")
        number = order.index((period, field)) + 1
        if limit.measure == "tokens":
            return _TOKEN_BUDGET, _number(self.reserved, (field, _TOKEN_UNIT)), number
        return _MONEY_BUDGET, _number(self.reserved, (field, _MONEY_UNIT)), number


class _Known:
    """A key's plans."""

    __slots__ = ("day", "models", "plans", "priced", "prices", "record")

    def __init__(self, record: KeyRecord, day: Today, prices: Mapping[str, Rates]) -> None:
        self.record, self.day, self.prices = record, day, prices
        self.models = {rule.limit.model for rule in record.rules}
        self.priced = any(rule.limit.measure == "cost" for rule in record.rules)
        self.plans: dict[tuple[str, bool], Plan] = {}


class Plans:
    """Remembers plans while the key's record, the day and the prices are what they were."""

    def __init__(self, prices: PriceTable, clock: Callable[[], float] = time.time) -> None:
        self._prices = prices
        self._clock = clock
        self._today = today(clock())
        self._known: dict[str, _Known] = {}

    @property
    def day(self) -> Today:
        now = self._clock()
        if not self._today.day_ends - 86_400 <= now < self._today.day_ends:
            self._today = today(now)
        return self._today

    def find(self, record: KeyRecord, model: str, *, reading: bool) -> Plan:
        """The plan for a request; one that reads takes no tokens, no money and nobody's place."""
        day, prices = self.day, self._prices.rates
        known = self._known.get(record.id)
        if known is None or known.record is not record or known.day is not day or known.prices is not prices:
            known = self._known[record.id] = _Known(record, day, prices)
            if len(self._known) > _MOST_KEYS:
                del self._known[next(iter(self._known))]
        if model not in known.models and not (known.priced and model in prices):
            model = ""  # so that made-up names make no plans
        plan = known.plans.get((model, reading))
        if plan is None:
            price = prices.get(model, FREE) if known.priced else FREE
            rules = tuple(rule for rule in record.rules if _concerns(rule.limit, model, price, reading=reading))
            plan = known.plans[model, reading] = Plan(record, rules, price, day)
        return plan


def _concerns(limit: Limit, model: str, price: Rates, *, reading: bool) -> bool:
    if limit.model and limit.model != model:
        return False
    if reading:
        return limit.measure == "requests"
    return limit.measure != "cost" or (price is not FREE and limit.currency == price.currency)


def _field(rule: Rule) -> str:
    limit = rule.limit
    if limit.measure == "concurrency":
        return names.slots_field(rule.scope, limit.model)
    if limit.measure == "cost":
        return names.cost_field(rule.scope, limit.model, limit.currency)
    return names.tokens_field(rule.scope, limit.model)


def _number(places: list[Any], place: Any) -> int:
    """Its number in the list, which it joins if it is new."""
    if place not in places:
        places.append(place)
    return places.index(place) + 1
