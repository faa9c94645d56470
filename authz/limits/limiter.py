"""The limiter: evaluates every limit of account, project and key for a request, and reserves what it may use.

A check is one call of check.lua. While Valkey is unreachable, or does not hold all reservations, a known key gets a
share of what it had left, for a minute; every other request is refused.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from authz.credentials.key_record import KeyRecord
from authz.errors import DatabaseError
from authz.limits.counter_writes import CounterWrites
from authz.limits.in_flight import InFlight, Reservation
from authz.limits.local_fallback import LocalFallback
from authz.limits.plans import LedgerBalance, Plan, Plans
from authz.limits.rate_limit_status import NO_LIMITS, RateLimitStatus, rate_limit_status
from authz.limits.recovery import StoreEpoch
from authz.limits.refusals import LimitError, Violation, refusal, violation
from authz.metrics import AUTHZ_LOCAL_GRANTS
from authz.request_facts import RequestFacts
from common.errors import Reason, UplionError
from common.operations import Kind
from ledger.limits import CONCURRENCY
from storage.valkey import Commands, Reply, Script, ValkeyError

logger = logging.getLogger(__name__)
_LOAD_TRIES = 5
_PAUSE_SECONDS = 0.5  # after a failure, before Valkey is called again: a check must not wait for one that is down
_PAUSES_PER_WAIT = 2  # one that hangs makes a check wait much longer than one that is gone, so fewer checks try it
_MAX_ROUNDS = 5  # of one check: a new epoch, loading for each of two reasons, and once more for a flush in between
_NOT_LOADED = -1
_WAITS = (0.05, 0.1, 0.15, 0.3, 0.4)  # shares of the time that a slot is waited for, between two looks
_FEW_SLOTS = 16
_MOST_WAITING = 64  # for a slot, of one account


class Ledger(Protocol):
    """The ledger's balances, in tokens or millionths; raises DatabaseError."""

    async def used(self, account: str, wanted: Sequence[LedgerBalance]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class LimiterSettings:
    """How much is reserved and for how long, and how long an outage of Valkey is bridged; times in seconds."""

    default_output_tokens: int = 1024
    most_output_tokens: int = 131_072
    deadline: float = 600.0
    given_up: float = 7200.0  # after the deadline
    outage: float = 60.0
    release: float = 0.0  # for a slot among those at once


class Grant(msgspec.Struct, frozen=True):
    """An admitted request: its reservation, and what one choice may generate (None: no limit but the model's)."""

    reservation: str  # its id; empty: nothing is reserved
    max_output_tokens: int | None = None
    capped_by: str = ""  # the name of the rule that set max_output_tokens
    holds_slot: bool = False
    slots_scarce: bool = False  # a caller of all that it may have at once would notice a slot that is free too late
    rate_limits: RateLimitStatus = NO_LIMITS
    deadline_seconds: float | None = None  # the request must have ended by then; None: nothing is reserved
    shadows: tuple[LimitError, ...] = ()  # the refusals of rules in shadow


class _EpochError(Exception):
    """Valkey does not hold all reservations: it lost them, or some were granted without it."""


class Limiter:
    """Admits and reserves. Fails closed: no failure lets a request pass."""

    def __init__(
        self,
        valkey: Commands,
        ledger: Ledger,
        plans: Plans,
        local_fallback: LocalFallback,
        epoch: StoreEpoch,
        in_flight: InFlight,
        counter_writes: CounterWrites,
        settings: LimiterSettings,
        new_id: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._script = Script(valkey, "authz.limits", "check.lua")
        self._ledger = ledger
        self._plans = plans
        self._local_fallback = local_fallback
        self._epoch = epoch
        self._in_flight = in_flight
        self._counter_writes = counter_writes
        self._settings = settings
        self._deadline_ms, self._given_up_ms = int(settings.deadline * 1000), int(settings.given_up * 1000)
        self._new_id = new_id
        self._clock = clock
        self._wall = wall
        self._down_since: float | None = None
        self._retry_at = 0.0
        self._waiting: Counter[str] = Counter()  # requests that wait for a slot, by account

    @property
    def degraded(self) -> bool:
        return self._down_since is not None

    async def warm(self) -> None:
        """Connects and loads the script before the first check; a Valkey that is down is only logged."""
        for _ in range(_LOAD_TRIES):
            try:
                await self._script.load()
                return
            except ValkeyError as problem:
                missing = problem
        logger.warning("Valkey does not answer yet", extra={"problem": repr(missing)})

    async def admit(self, record: KeyRecord, request: RequestFacts) -> Grant:
        """Reserves and grants; raises RATE_LIMIT_EXCEEDED, INSUFFICIENT_QUOTA or UNAVAILABLE."""
        reading = request.kind is Kind.READING
        plan = self._plans.find(record, request.model, reading=reading)
        if reading and not plan.rules:
            return Grant("")
        reservation = "" if reading else self._new_id()
        if self._down_since is not None and self._clock() < self._retry_at:
            return self._grant_locally(plan, request, reservation)
        began = self._clock()
        self._retry_at = began + _PAUSE_SECONDS  # while it is down, only this check waits for it
        try:
            reply = await self._check(plan, request, reservation)
            if reply[0] == b"NO" and plan.holds_slot:
                reply = await self._check_again(plan, request, reservation, reply)
            if self._down_since is not None:
                self._end_outage()
            return self._grant(plan, request, reservation, reply)
        except (ValkeyError, _EpochError) as problem:
            self._begin_outage(problem, self._clock() - began)
            try:
                return self._grant_locally(plan, request, reservation)
            except UplionError:
                self._counter_writes.give_back(record.account, reservation)
                raise
        except asyncio.CancelledError:
            self._counter_writes.give_back(record.account, reservation)
            raise

    async def _check(self, plan: Plan, request: RequestFacts, reservation: str) -> Reply:
        """Calls check.lua until it decides: it may first need the current epoch, or balances of the ledger."""
        if plan.rules:
            if not self._epoch.complete:
                raise _EpochError
            if self._epoch.behind:
                await self._epoch.catch_up()
        tail = (
            reservation,
            self._deadline_ms,
            self._given_up_ms,
            request.input_tokens,
            self._wanted(request),
            request.choices,
        )
        verified, loaded = "0", b""
        for _ in range(_MAX_ROUNDS):
            reply: Reply = await self._script.run(*plan.arguments, self._epoch.value, verified, *tail, loaded)
            outcome = reply[0]
            if outcome == b"LOAD":
                loaded = await self._load(plan, [number - 1 for number in reply[1:]])
            elif outcome == b"FRESH":
                await self._epoch.refresh()
                if plan.rules and not self._epoch.complete:
                    raise _EpochError
                verified = "1"
            else:
                return reply
        raise _unavailable()

    async def _check_again(self, plan: Plan, request: RequestFacts, reservation: str, reply: Reply) -> Reply:
        """Waits a moment where only the requests at once are too many: one that its client has left may just be ending.

        A router frees the slot of an answered request before it says so; that of one whose client went away, it
        frees as soon as it hears of that. Of each account only so many wait, since each costs Valkey some more calls.
        """
        account = plan.record.account
        waiting = self._waiting[account]
        if not self._settings.release or waiting >= _MOST_WAITING or not _only_slots_lack(plan, reply):
            return reply
        self._waiting[account] = waiting + 1
        try:
            for share in _WAITS:
                await asyncio.sleep(share * self._settings.release)
                reply = await self._check(plan, request, reservation)
                if reply[0] != b"NO" or not _only_slots_lack(plan, reply):
                    break
            return reply
        finally:
            self._waiting[account] -= 1
            if not self._waiting[account]:
                del self._waiting[account]

    async def _load(self, plan: Plan, numbers: Sequence[int]) -> bytes:
        """check.lua's argument with the balances of `numbers` in `plan.used`."""
        try:
            found = await self._ledger.used(plan.record.account, [plan.used[number] for number in numbers])
        except DatabaseError as problem:
            logger.warning("balances could not be read", extra={"problem": repr(problem)})
            raise _unavailable() from problem
        totals = [_NOT_LOADED] * len(plan.used)
        for number, total in zip(numbers, found, strict=True):
            totals[number] = total
        return msgspec.msgpack.encode(totals)

    def _grant(self, plan: Plan, request: RequestFacts, reservation: str, reply: Reply) -> Grant:
        if reply[0] == b"NO":
            raise self._refusal(plan, reply)
        _, output, tightest, now_ms, remaining, resets, shadows = reply
        deadline = self._settings.deadline if reservation else None
        self._local_fallback.remember(plan, remaining)
        if not plan.rules:
            return Grant(reservation, deadline_seconds=deadline)
        units = plan.units(request, output)
        self._in_flight.add(
            reservation,
            Reservation(plan, request.request_id, now_ms, now_ms + self._deadline_ms, units),
            written=True,
        )
        cap = output if tightest else None
        capped = tightest and (request.output_tokens is None or output < request.output_tokens)
        return Grant(
            reservation,
            cap,
            plan.rules[tightest - 1].name if capped else "",
            bool(reservation) and plan.holds_slot,
            bool(reservation) and _slots_scarce(plan, remaining),
            rate_limit_status(plan, remaining, resets, self._plans.day, self._wall()),
            deadline,
            tuple(refusal([self._violation(plan, remaining, number, wait)]) for number, wait in _pairs(shadows)),
        )

    def _refusal(self, plan: Plan, reply: Reply) -> UplionError:
        _, remaining, resets, refused = reply
        status = rate_limit_status(plan, remaining, resets, self._plans.day, self._wall())
        return refusal([self._violation(plan, remaining, number, wait) for number, wait in _pairs(refused)], status)

    def _violation(self, plan: Plan, remaining: Sequence[int], number: int, wait_ms: int) -> Violation:
        return violation(plan.rules[number - 1], remaining[number - 1], wait_ms, self._plans.day, self._wall())

    def _grant_locally(self, plan: Plan, request: RequestFacts, reservation: str) -> Grant:
        """From this process's share of what is left; raises UNAVAILABLE."""
        since = self._down_since
        if since is None or self._clock() - since > self._settings.outage:
            raise _unavailable()
        output = self._wanted(request)
        units = plan.units(request, output)
        left = self._local_fallback.take(plan, units, reservation)
        if left is None:
            raise _unavailable()
        AUTHZ_LOCAL_GRANTS.inc()
        now_ms = int((self._wall() + self._epoch.ahead_seconds) * 1000)
        self._in_flight.add(
            reservation,
            Reservation(plan, request.request_id, now_ms, now_ms + self._deadline_ms, units),
            written=False,
        )
        return Grant(
            reservation,
            output if plan.caps and output else None,
            "",
            bool(reservation) and plan.holds_slot,
            False,  # none can be freed in Valkey now, so nobody should wait for it
            rate_limit_status(plan, left, [-1] * len(left), self._plans.day, self._wall()),
            self._settings.deadline if reservation else None,
        )

    def _wanted(self, request: RequestFacts) -> int:
        """Output tokens of one choice that are requested; 0 where nothing is generated."""
        if request.kind is not Kind.GENERATION:
            return 0
        wanted = request.output_tokens or self._settings.default_output_tokens
        return min(wanted, self._settings.most_output_tokens)

    def _begin_outage(self, problem: Exception, waited_seconds: float) -> None:
        self._retry_at = self._clock() + max(_PAUSE_SECONDS, _PAUSES_PER_WAIT * waited_seconds)
        if self._down_since is None:
            self._down_since = self._clock()
            self._local_fallback.begin_outage()
            logger.warning("limits cannot be checked: known keys get a local share", extra={"problem": repr(problem)})

    def _end_outage(self) -> None:
        logger.info("limits can be checked again")
        self._down_since = None
        self._epoch.wake()


def _only_slots_lack(plan: Plan, reply: Reply) -> bool:
    """Whether every rule that refuses counts requests at once."""
    return all(plan.rules[number - 1].limit.kind is CONCURRENCY for number, _ in _pairs(reply[3]))


def _slots_scarce(plan: Plan, remaining: Sequence[int]) -> bool:
    """Whether a rule of requests at once has less than half of them left, or few at all."""
    return any(
        left < max(_FEW_SLOTS, rule.limit.amount // 2)
        for rule, left in zip(plan.rules, remaining, strict=True)
        if rule.limit.kind is CONCURRENCY
    )


def _pairs(flat: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Of a rule's number and ms, as check.lua lists them."""
    return zip(flat[::2], flat[1::2], strict=True)


def _unavailable() -> UplionError:
    return UplionError(
        Reason.UNAVAILABLE, "Limits cannot be checked at the moment. Try again shortly.", retry_after_seconds=1
    )
