"""Random deliveries, redeliveries, reorders and crashes between any two steps, against a trivial model."""

import asyncio
import random
import uuid
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from uplion.billing.v1.usage_event_pb2 import AttemptStatus

from billing.entry import Arrival, Entry, decode
from billing.reservations.settlement import connect_settlement
from billing.rollups import ALL_MODELS, Balance, Totals
from billing.store import LedgerWriter, Recorded
from ledger.periods import LIFE
from ledger.usage_columns import total

_EXAMPLES = 50
_STEPS = 12
_RESERVED_TOKENS = 100_000


class CrashError(Exception):
    """The process ends here."""


class FrailPool:
    """A pool whose connections end the process, so to speak, before their nth statement."""

    def __init__(self, pool: Any, statements: int) -> None:
        self._pool, self.statements = pool, statements

    def acquire(self) -> "FrailPool":
        self._acquired = self._pool.acquire()
        return self

    async def __aenter__(self) -> "FrailConnection":
        return FrailConnection(await self._acquired.__aenter__(), self)

    async def __aexit__(self, *problem: Any) -> None:
        await self._acquired.__aexit__(*problem)

    async def execute(self, *arguments: Any) -> Any:
        return await self._pool.execute(*arguments)


class FrailConnection:
    def __init__(self, connection: Any, pool: FrailPool) -> None:
        self._connection, self._pool = connection, pool

    def __getattr__(self, name: str) -> Any:
        if name != "transaction":
            self._pool.statements -= 1
            if self._pool.statements < 0:
                raise CrashError
        return getattr(self._connection, name)


class Billing(RuleBasedStateMachine):
    """The stream keeps what is not acknowledged; the model is what was committed, first come first served."""

    def __init__(self, harness: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop
        self.harness = replace(harness, account=f"acc-{uuid.uuid4().hex[:12]}")
        self.published: list[Any] = []
        self.pending: list[Any] = []
        self.counted: dict[tuple[str, int], Entry] = {}
        self.reserved: set[str] = set()
        self.released: set[str] = set()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    @rule(
        number=st.integers(0, 5), attempt=st.integers(1, 2), tokens=st.integers(0, 9), last=st.booleans(),
        by_router=st.booleans(), project=st.sampled_from(["", "p"])
    )  # fmt: skip
    def publish(self, number: int, attempt: int, tokens: int, last: bool, by_router: bool, project: str) -> None:
        event = self.harness.event(number, attempt=attempt, last=last, project=project)
        event.usage.output_tokens = tokens
        if by_router:
            event.provider, event.status = "", AttemptStatus.ATTEMPT_STATUS_WORKER_LOST
        if event.reservation not in self.reserved:
            self.reserved.add(event.reservation)
            self.run(self.harness.reserve(event, tokens=_RESERVED_TOKENS))
        self.published.append(event)
        self.pending.append(event)

    @precondition(lambda self: self.published)
    @rule(data=st.data())
    def publish_again(self, data: st.DataObject) -> None:
        self.pending.append(data.draw(st.sampled_from(self.published)))

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), crash_before=st.none() | st.integers(0, 12), settle=st.booleans(), acknowledge=st.booleans())
    def bill(self, data: st.DataObject, crash_before: int | None, settle: bool, acknowledge: bool) -> None:
        batch = data.draw(st.lists(st.sampled_from(range(len(self.pending))), min_size=1, max_size=8))
        events = [self.pending[position] for position in batch]
        recorded = self.record(events, 10**6 if crash_before is None else crash_before)
        if recorded is None or not settle:
            return
        self.settle(events, recorded.totals)
        if acknowledge:
            self.pending = [event for position, event in enumerate(self.pending) if position not in batch]

    @precondition(lambda self: len(self.pending) > 1)
    @rule(seed=st.integers(0, 999))
    def bill_twice_at_once(self, seed: int) -> None:
        """Two processes are given the same events in different orders."""
        twins: dict[tuple[str, int], set[bytes]] = {}
        for event in self.pending:
            twins.setdefault((event.request_id, event.attempt), set()).add(event.SerializeToString())
        # Who comes first decides between different events of one attempt: those are for the other rules.
        events = [event for event in self.pending if len(twins[event.request_id, event.attempt]) == 1]
        if not events:
            return
        others = random.Random(seed).sample(events, len(events))

        async def both() -> list[Recorded]:
            pool = self.harness.database
            return await asyncio.gather(*(LedgerWriter(pool).record(entries(each)) for each in (events, others)))

        fresh = self.count(events)
        recorded = self.run(both())
        assert sum(each.new for each in recorded) == fresh
        for each in recorded:
            self.settle(events, each.totals)

    def record(self, events: list[Any], crash_before: int) -> Recorded | None:
        pool: Any = FrailPool(self.harness.database, crash_before)
        try:
            recorded = self.run(LedgerWriter(pool).record(entries(events)))
        except CrashError:
            return None
        assert recorded.new == self.count(events)
        assert recorded.new + recorded.duplicates == len(events)
        assert recorded.totals.tokens[Balance(self.harness.account, "a", ALL_MODELS, LIFE)] == self.tokens
        return recorded

    def count(self, events: list[Any]) -> int:
        """The model of a committed batch: how many were new."""
        fresh: dict[tuple[str, int], Entry] = {}
        for entry in entries(events):
            known = fresh.setdefault(entry[:2], entry)
            if entry.by_worker and not known.by_worker:
                fresh[entry[:2]] = entry
        fresh = {key: entry for key, entry in fresh.items() if key not in self.counted}
        self.counted |= fresh
        return len(fresh)

    @property
    def tokens(self) -> int:
        return sum(total(entry.tokens) for entry in self.counted.values())

    def settle(self, events: list[Any], totals: Totals) -> None:
        self.run(self._settle(events, totals))
        self.released |= {event.reservation for event in events if event.last}

    async def _settle(self, events: list[Any], totals: Totals) -> None:
        async with connect_settlement(self.harness.settings.redis_url) as settlement:
            await settlement.settle(entries(events), totals)

    def teardown(self) -> None:
        """What is left is delivered once more, and then everything agrees."""
        if not self.pending:
            return
        recorded = self.record(self.pending, 10**6)
        assert recorded is not None
        self.settle(self.pending, recorded.totals)
        self.run(self.check())

    async def check(self) -> None:
        database, account = self.harness.database, self.harness.account
        rows = await database.fetch("SELECT * FROM usage_events WHERE account = $1", account)
        found = {(row["request_id"], row["attempt"]): row["input_tokens"] + row["output_tokens"] for row in rows}
        assert found == {key: total(entry.tokens) for key, entry in self.counted.items()}
        requests = sum(entry.last for entry in self.counted.values())
        everything = (self.tokens, requests)
        kinds = "account = $1 AND left(scope, 1) <> 'p' GROUP BY left(scope, 1), model = '', length(period)"
        sums = await database.fetch(f"SELECT sum(tokens), sum(requests) FROM balances WHERE {kinds}", account)
        assert len(sums) == 2 * 2 * 3
        assert {tuple(row) for row in sums} == {everything}
        hourly = "SELECT sum(input_tokens + output_tokens), sum(requests) FROM usage_hourly WHERE account = $1"
        assert tuple(await database.fetchrow(hourly, account)) == everything
        await self.harness.check_chain(account)
        quota = await self.harness.quota()
        assert quota["used"] == self.tokens
        assert quota["reserved"] == _RESERVED_TOKENS * len(self.reserved - self.released)


def entries(events: list[Any]) -> list[Entry]:
    return [decode(event.SerializeToString(), Arrival(event.end_time.ToNanoseconds(), None)) for event in events]


async def test_whatever_happens_between_two_steps_every_event_counts_once(harness: Any, seed: int) -> None:
    loop = asyncio.get_running_loop()

    @hypothesis.seed(seed)
    def machine() -> Billing:
        return Billing(harness, loop)

    profile = settings(
        max_examples=_EXAMPLES,
        stateful_step_count=_STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # shrinking against real servers would take minutes; the seed brings it back
        suppress_health_check=list(HealthCheck),
    )
    run: Any = run_state_machine_as_test  # its stub wants a class; a factory is as good
    await asyncio.to_thread(run, machine, settings=profile)
    await harness.check_chain()
