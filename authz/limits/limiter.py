"""What is left: every limit of account, project and key, and the reservation of what a request may use.

One Lua call a check (check.lua). Valkey away, or not what it was: a known key gets a share of what it had left, for a
minute, then nobody.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from authz.credentials.key_record import KeyRecord
from authz.limits.counter_writes import CounterWrites
from authz.limits.in_flight import InFlight, Reservation
from authz.limits.local_fallback import LocalFallback
from authz.limits.plans import Plan, Plans
from authz.limits.rate_limit_status import NO_LIMITS, RateLimitStatus, rate_limit_status
from authz.limits.recovery import StoreEpoch
from authz.limits.refusals import LimitError, Violation, refusal, violation
from authz.limits.scripts import Commands, Script
from authz.metrics import AUTHZ_LOCAL_GRANTS
from authz.request_facts import RequestFacts
from common.errors import Reason, UplionError
from common.operations import Kind
from storage.valkey import ValkeyError

logger = logging.getLogger(__name__)
_WARM_TRIES = 5
_PAUSE_SECONDS = 0.5  # after a failure, before Valkey is asked again: a check must not wait for a dead one
_MOST_ROUNDS = 5  # of one check: fresh, then loading for each of two reasons, and once more for a flush in between
_NOT_LOADED = -1


class Ledger(Protocol):
    """What is used, as the ledger has it."""

    async def used(self, account: str, wanted: Sequence[tuple[str, str, str, str]]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class LimiterSettings:
    """How much is reserved, for how long (seconds), and what holds without Valkey."""

    default_output_tokens: int = 1024
    most_output_tokens: int = 131_072
    deadline: float = 600.0
    given_up: float = 7200.0  # after the deadline
    outage: float = 60.0


class Grant(msgspec.Struct, frozen=True):
    """An admitted request: its reservation, and what one choice may generate (None: no limit but the model's)."""

    reservation: str
    max_output_tokens: int | None = None
    capped_by: str = ""  # the rule that says so
    holds_slot: bool = False
    rate_limits: RateLimitStatus = NO_LIMITS
    deadline_seconds: float | None = None  # the request must have ended by then; None: it holds nothing
    shadows: tuple[LimitError, ...] = ()  # what rules in shadow would have said


class _NotBelievedError(Exception):
    """Valkey lost what it held, and is not told everything yet."""


class Limiter:
    """Decides and reserves. Never lets anybody pass because something failed."""

    def __init__(
        self,
        valkey: Commands,
        ledger: Ledger,
        plans: Plans,
        shares: LocalFallback,
        since: StoreEpoch,
        in_flight: InFlight,
        counter_writes: CounterWrites,
        rules: LimiterSettings,
        new_id: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._script = Script(valkey, "check.lua")
        self._ledger = ledger
        self._plans = plans
        self._local_fallback = shares
        self._epoch = since
        self._in_flight = in_flight
        self._counter_writes = counter_writes
        self._rules = rules
        self._deadline_ms, self._given_up_ms = int(rules.deadline * 1000), int(rules.given_up * 1000)
        self._new_id = new_id
        self._clock = clock
        self._wall = wall
        self._down_since: float | None = None
        self._ask_again_at = 0.0

    @property
    def degraded(self) -> bool:
        return self._down_since is not None

    async def warm(self) -> None:
        """Connects and loads the script, so that no check waits for that; a Valkey that is away is no error yet."""
        for _ in range(_WARM_TRIES):
            try:
                await self._script.load()
                return
            except ValkeyError as problem:
                missing = problem
        logger.warning("Valkey does not answer yet", extra={"problem": repr(missing)})

    async def admit(self, record: KeyRecord, question: RequestFacts) -> Grant:
        """Reserves and grants; raises RATE_LIMIT_EXCEEDED, INSUFFICIENT_QUOTA or UNAVAILABLE."""
        reading = question.kind is Kind.READING
        plan = self._plans.find(record, question.model, reading=reading)
        if reading and not plan.rules:
            return Grant("")
        reservation = "" if reading else self._new_id()
        if self._down_since is not None and self._clock() < self._ask_again_at:
            return self._locally(plan, question, reservation)
        self._ask_again_at = self._clock() + _PAUSE_SECONDS  # meanwhile, if it is down, only this check waits for it
        try:
            reply = await self._ask(plan, question, reservation)
            if self._down_since is not None:
                self._back()
            return self._granted(plan, question, reservation, reply)
        except (ValkeyError, _NotBelievedError) as problem:
            self._lost(problem)
            try:
                return self._locally(plan, question, reservation)
            except UplionError:
                self._counter_writes.give_back(record.account, reservation)
                raise
        except asyncio.CancelledError:
            self._counter_writes.give_back(record.account, reservation)
            raise

    async def _ask(self, plan: Plan, question: RequestFacts, reservation: str) -> list[Any]:
        if plan.rules and not self._epoch.trusted:
            raise _NotBelievedError
        tail = (
            reservation,
            self._deadline_ms,
            self._given_up_ms,
            question.input_tokens,
            self._wanted(question),
            question.choices,
        )
        sure, loaded = "0", b""
        for _ in range(_MOST_ROUNDS):
            reply: list[Any] = await self._script.run(*plan.arguments, self._epoch.value, sure, *tail, loaded)
            outcome = reply[0]
            if outcome == b"LOAD":
                loaded = await self._load(plan, [number - 1 for number in reply[1:]])
            elif outcome == b"FRESH":
                await self._epoch.look()
                if plan.rules and not self._epoch.trusted:
                    raise _NotBelievedError
                sure = "1"
            else:
                return reply
        raise _unavailable()

    async def _load(self, plan: Plan, numbers: Sequence[int]) -> bytes:
        try:
            found = await self._ledger.used(plan.record.account, [plan.used[number] for number in numbers])
        except Exception as problem:  # asyncpg's many: without the ledger nobody knows what is left
            logger.warning("balances could not be read", extra={"problem": repr(problem)})
            raise _unavailable() from problem
        totals = [_NOT_LOADED] * len(plan.used)
        for number, total in zip(numbers, found, strict=True):
            totals[number] = total
        return msgspec.msgpack.encode(totals)

    def _granted(self, plan: Plan, question: RequestFacts, reservation: str, reply: list[Any]) -> Grant:
        if reply[0] == b"NO":
            raise self._refused(plan, reply)
        _, output, tightest, now_ms, remaining, resets, shadows = reply
        deadline = self._rules.deadline if reservation else None
        self._local_fallback.remember(plan, remaining)
        if not plan.rules:
            return Grant(reservation, deadline_seconds=deadline)
        tokens = question.input_tokens + output * question.choices
        cost = plan.cost(question.input_tokens, output * question.choices)
        self._in_flight.add(
            reservation,
            Reservation(plan, question.request_id, now_ms, now_ms + self._deadline_ms, tokens, cost),
            known=True,
        )
        cap = output if tightest else None
        capped = tightest and (question.output_tokens is None or output < question.output_tokens)
        return Grant(
            reservation,
            cap,
            plan.rules[tightest - 1].name if capped else "",
            bool(reservation) and plan.holds_slot,
            rate_limit_status(plan.rules, remaining, resets, self._plans.day, self._wall()),
            deadline,
            tuple(refusal([self._violation(plan, remaining, number, wait)]) for number, wait in _pairs(shadows)),
        )

    def _refused(self, plan: Plan, reply: list[Any]) -> UplionError:
        _, remaining, resets, refused = reply
        left = rate_limit_status(plan.rules, remaining, resets, self._plans.day, self._wall())
        return refusal([self._violation(plan, remaining, number, wait) for number, wait in _pairs(refused)], left)

    def _violation(self, plan: Plan, remaining: Sequence[int], number: int, wait_ms: int) -> Violation:
        return violation(plan.rules[number - 1], remaining[number - 1], wait_ms, self._plans.day, self._wall())

    def _locally(self, plan: Plan, question: RequestFacts, reservation: str) -> Grant:
        since = self._down_since
        if since is None or self._clock() - since > self._rules.outage:
            raise _unavailable()
        output = self._wanted(question)
        tokens = question.input_tokens + output * question.choices
        cost = plan.cost(question.input_tokens, output * question.choices)
        left = self._local_fallback.take(plan, tokens, cost)
        if left is None:
            raise _unavailable()
        AUTHZ_LOCAL_GRANTS.inc()
        now_ms = int(self._wall() * 1000)
        self._in_flight.add(
            reservation,
            Reservation(plan, question.request_id, now_ms, now_ms + self._deadline_ms, tokens, cost),
            known=False,
        )
        return Grant(
            reservation,
            output if plan.caps and output else None,
            "",
            bool(reservation) and plan.holds_slot,
            rate_limit_status(plan.rules, left, [-1] * len(left), self._plans.day, self._wall()),
            self._rules.deadline if reservation else None,
        )

    def _wanted(self, question: RequestFacts) -> int:
        """Output tokens of one choice that are asked for; 0 where nothing is generated."""
        if question.kind is not Kind.GENERATION:
            return 0
        wanted = question.output_tokens or self._rules.default_output_tokens
        return min(wanted, self._rules.most_output_tokens)

    def _lost(self, problem: Exception) -> None:
        self._ask_again_at = self._clock() + _PAUSE_SECONDS
        if self._down_since is None:
            self._down_since = self._clock()
            self._local_fallback.open()
            logger.warning("limits cannot be asked: known keys get a local share", extra={"problem": repr(problem)})

    def _back(self) -> None:
        logger.info("limits can be asked again")
        self._down_since = None
        self._epoch.wake()


def _pairs(flat: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Of a rule's number and ms, as check.lua lists them."""
    return zip(flat[::2], flat[1::2], strict=True)


def _unavailable() -> UplionError:
    return UplionError(
        Reason.UNAVAILABLE, "Limits cannot be checked at the moment. Try again shortly.", retry_after_seconds=1
    )
