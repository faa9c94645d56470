"""Limits against a trivial model, in random histories on a real Valkey: admissions, ends, settlements in any order.

On failure the seed is printed; UPLION_TEST_SEED=<seed> runs the same histories again.
"""

import asyncio
import math
import os
import random
import uuid
from dataclasses import dataclass, field
from typing import Any

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, initialize, rule

from authz.credentials.key_record import KeyRecord
from authz.limits.limiter import Grant
from authz.limits.refusals import LimitError
from billing.reservations.settlement import Settlement, connect_settlement
from billing.rollups import Balance, Totals
from common.errors import Reason
from common.operations import Kind
from ledger.limits import Limit, Rule
from tests.integration.authz.harness import Harness, harness

EXAMPLES = 200
STEPS = 12
FIRST_DAY = 1_795_219_200  # 2026-11-21; the next days are in the same month, and one is not
PRICES = {"m1": (3.0, 7.0, 0.00002, "USD"), "m2": (0.5, 0.0, 0.0, "EUR"), "m3": None}  # per million tokens, per request
KEYS = {"k1": "p", "k2": "p", "k3": ""}


@dataclass
class Asked:
    """One admitted request."""

    key: str
    model: str
    kind: Kind
    reservation: str
    reserved: int  # tokens
    cost: int
    slot: bool
    settled: int | None = None  # tokens; None: it runs
    settled_cost: int = 0
    day: int = -1  # on which it was settled


def limits() -> st.SearchStrategy[Limit]:
    small = st.integers(0, 60)
    models = st.sampled_from(["", "", "m1", "m2"])
    shadow = st.sampled_from([False, False, False, True])
    periods = st.sampled_from(["minute", "day", "month", "life"])
    return st.one_of(
        st.builds(lambda n, m, s: Limit("requests", "minute", n // 8, m, shadow=s), small, models, shadow),
        st.builds(lambda n, m, s: Limit("concurrency", "", n // 12, m, shadow=s), small, models, shadow),
        st.builds(lambda n, p, m, s: Limit("tokens", p, 10 * n, m, shadow=s), small, periods, models, shadow),
        st.builds(
            lambda n, p, m, c, s: Limit("cost", p, 40 * n, m, c, s),
            small,
            st.sampled_from(["day", "month", "life"]),
            models,
            st.sampled_from(["USD", "EUR"]),
            shadow,
        ),
    )


@dataclass
class Model:
    """What has happened; everything else is added up from it."""

    asked: list[Asked] = field(default_factory=list)
    day: int = 0

    def price(self, model: str, tokens_in: int, tokens_out: int) -> int:
        price = PRICES[model]
        return (
            0 if price is None else math.ceil(round(tokens_in * price[0] + tokens_out * price[1] + price[2] * 1e6, 6))
        )

    def concerns(self, rule: Rule, key: str, model: str, kind: Kind) -> bool:
        limit, price = rule.limit, PRICES[model]
        if rule.level != "account" and rule.subject not in (key, KEYS[key]):
            return False
        if limit.model not in ("", model):
            return False
        if kind is Kind.READING:
            return limit.measure == "requests"
        return limit.measure != "cost" or (price is not None and price[3] == limit.currency)

    def left(self, rule: Rule, *, running: bool = True) -> int:
        """Without `running`: once all requests that run have ended, and used nothing."""
        limit, taken = rule.limit, 0
        for one in self.asked:
            if not self.concerns(rule, one.key, one.model, one.kind):
                continue
            same_period = limit.period in ("life", "minute") or one.day == self.day
            if limit.period == "month":
                same_period = (one.day < 3) == (self.day < 3)
            if limit.measure == "requests":
                taken += 1
            elif limit.measure == "concurrency":
                taken += one.slot and one.settled is None
            elif one.settled is None:
                taken += running * (one.reserved if limit.measure == "tokens" else one.cost)
            elif limit.period == "minute":
                taken += min(one.settled, one.reserved)
            elif same_period:
                taken += one.settled if limit.measure == "tokens" else one.settled_cost
        return limit.amount - taken

    def fitting(self, rule: Rule, left: int, model: str, size: int, output: int, choices: int) -> int:
        """Output tokens of one choice that the rule has room for; -1: not even the request."""
        limit = rule.limit
        if limit.measure in ("requests", "concurrency"):
            return output if left >= 1 else -1
        for granted in range(output, 0 if output else -1, -1):
            need = size + granted * choices
            if limit.measure == "cost":
                need = self.price(model, size, granted * choices)
            if need <= left:
                return granted
        return -1


class Histories(RuleBasedStateMachine):
    """One account with three keys; `world`, `settlement` and `loop` are given to the class."""

    world: Harness
    settlement: Settlement
    loop: asyncio.AbstractEventLoop

    @initialize(
        account=st.lists(limits(), max_size=3),
        project=st.lists(limits(), max_size=2),
        key=st.lists(limits(), max_size=3),
    )
    def begin(self, account: list[Limit], project: list[Limit], key: list[Limit]) -> None:
        self.world.account = f"m-{uuid.uuid4().hex[:12]}"
        self.world.now[0] = FIRST_DAY + 100
        self.world.ledger.used_totals.clear()
        self.model = Model()
        self.batches: list[tuple[list[Any], Totals]] = []
        self.rules = [Rule("account", self.world.account, limit) for limit in account]
        self.rules += [Rule("project", "p", limit) for limit in project]
        self.rules += [Rule("key", "k1", limit) for limit in key]

    @rule(
        key=st.sampled_from(sorted(KEYS)),
        model=st.sampled_from(sorted(PRICES)),
        size=st.integers(1, 60),
        output=st.integers(1, 40),
        choices=st.integers(1, 3),
        kind=st.sampled_from([Kind.GENERATION, Kind.GENERATION, Kind.EMBEDDING, Kind.READING]),
    )
    def ask(self, key: str, model: str, size: int, output: int, choices: int, kind: Kind) -> None:
        if kind is not Kind.GENERATION:
            choices = 1
        if kind is Kind.READING:
            size = 0
        wanted = output if kind is Kind.GENERATION else 0
        rules = [rule for rule in self.rules if self.model.concerns(rule, key, model, kind)]
        fits = {
            id(rule): self.model.fitting(rule, self.model.left(rule), model, size, wanted, choices) for rule in rules
        }
        refusing = {rule.name for rule in rules if fits[id(rule)] < 0 and not rule.limit.shadow}
        shadows = sorted(rule.name for rule in rules if fits[id(rule)] < 0 and rule.limit.shadow)
        mine = tuple(rule for rule in self.rules if rule.level == "account" or rule.subject in (key, KEYS[key]))
        record = KeyRecord(key, self.world.account, bytes(32), "", frozenset(), True, project=KEYS[key], rules=mine)
        answer = self.run(self.answer(record, model=model, size=size, output=output, choices=choices, kind=kind))
        if isinstance(answer, LimitError):
            assert answer.facts["rule"] in refusing
            spent = {
                rule.name
                for rule in rules
                if not rule.limit.shadow
                and rule.limit.measure in ("tokens", "cost")
                and rule.limit.period != "minute"
                and self.model.fitting(rule, self.model.left(rule, running=False), model, size, wanted, choices) < 0
            }
            assert (answer.reason is Reason.INSUFFICIENT_QUOTA) == bool(spent)
            assert not spent or answer.facts["rule"] in spent
            return
        assert not refusing
        assert sorted(str(each.facts["rule"]) for each in answer.shadows) == shadows
        granted = min([wanted, *(fits[id(rule)] for rule in rules if not rule.limit.shadow)])
        if granted < wanted:
            assert answer.max_output_tokens == granted
            assert answer.capped_by in {rule.name for rule in rules if fits[id(rule)] == granted}
        else:
            assert answer.capped_by == ""
        if answer.rate_limits.tokens is not None:
            left = self.model.left(answer.rate_limits.tokens.rule)
            assert answer.rate_limits.tokens.remaining == left - size - granted * choices
        cost = 0 if kind is Kind.READING else self.model.price(model, size, granted * choices)
        self.model.asked.append(
            Asked(key, model, kind, answer.reservation, size + granted * choices, cost, kind is not Kind.READING)
        )
        if kind is Kind.READING:
            self.model.asked[-1].settled = 0

    async def answer(self, record: KeyRecord, **question: Any) -> Grant | LimitError:
        try:
            return await self.world.admit(record, **question)
        except LimitError as error:
            return error

    @rule(data=st.data(), share=st.floats(0, 1))
    def settle(self, data: st.DataObject, share: float) -> None:
        """Some requests end; billing commits and settles them."""
        running = [one for one in self.model.asked if one.settled is None]
        if not running:
            return
        ended = data.draw(st.lists(st.sampled_from(running), min_size=1, max_size=4, unique_by=id), label="ended")
        for one in ended:
            one.settled, one.settled_cost, one.day = int(one.reserved * share), int(one.cost * share), self.model.day
        totals = self.commit()
        self.batches.append(([_Entry(self.world.account, one.reservation, one.settled or 0) for one in ended], totals))
        self.run(self.settlement.settle(*self.batches[-1]))

    @rule(data=st.data())
    def settle_again(self, data: st.DataObject) -> None:
        if self.batches:
            self.run(self.settlement.settle(*data.draw(st.sampled_from(self.batches), label="batch")))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A request ends and says so; its settlement comes later, or another time."""
        running = [one for one in self.model.asked if one.settled is None and one.reservation]
        if running:
            one = data.draw(st.sampled_from(running), label="released")
            one.slot = False
            self.run(self.world.counter_writes.send("", {self.world.account: [("free", one.reservation)]}))

    @rule()
    def next_day(self) -> None:
        self.model.day += 1
        self.world.now[0] = FIRST_DAY + 100 + (self.model.day + (7 if self.model.day >= 3 else 0)) * 86_400

    def commit(self) -> Totals:
        """What the ledger then has, of every scope, model and period."""
        totals = Totals()
        for one in self.model.asked:
            if one.settled is None or one.kind is Kind.READING:
                continue
            number = one.day + (7 if one.day >= 3 else 0)
            date = f"2026-11-{21 + number:02}" if number < 10 else f"2026-12-{number - 9:02}"
            price = PRICES[one.model]
            for scope in ("a", f"k:{one.key}", f"p:{KEYS[one.key]}"):
                for model in ("", one.model):
                    for period in ("life", date, date[:7]):
                        place = Balance(self.world.account, scope, model, period)
                        totals.tokens[place] = totals.tokens.get(place, 0) + one.settled
                        if price is not None:
                            money = (place, price[3])
                            totals.cost_millionths[money] = totals.cost_millionths.get(money, 0) + one.settled_cost
        self.world.ledger.used_totals.update({(*place[1:], ""): total for place, total in totals.tokens.items()})
        self.world.ledger.used_totals.update(
            {(*place[1:], currency): total for (place, currency), total in totals.cost_millionths.items()}
        )
        return totals

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)


class _Entry:
    """What settlement reads of a ledger entry."""

    last = True

    def __init__(self, account: str, reservation: str, tokens: int) -> None:
        self.account, self.reservation, self.tokens = account, reservation, (tokens, 0, 0, 0, 0)


def test_every_history_is_judged_as_the_model_judges_it(redis_url: str) -> None:
    seed = int(os.environ.get("UPLION_TEST_SEED") or random.getrandbits(32))
    loop = asyncio.new_event_loop()
    opened, connected = harness(redis_url), connect_settlement(redis_url)
    try:
        world = loop.run_until_complete(opened.__aenter__())
        for model, price in PRICES.items():
            if price is not None:
                world.price(model, *price)
        Histories.world, Histories.loop = world, loop
        Histories.settlement = loop.run_until_complete(connected.__aenter__())
        options = settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        try:
            hypothesis.seed(seed)(get_state_machine_test(Histories, settings=options))()
        except BaseException as problem:
            problem.add_note(f"UPLION_TEST_SEED={seed} runs these histories again")
            raise
        loop.run_until_complete(connected.__aexit__(None, None, None))
        loop.run_until_complete(opened.__aexit__(None, None, None))
    finally:
        loop.close()
