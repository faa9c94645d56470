"""What is left: requests a minute and token budgets, and the reservation of what a request may use.

One Lua call a check (check.lua). Valkey away: a known key gets a share of what it had left, for a minute, then nobody.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any, Protocol

from authz.asking import Kind, Question
from authz.keys import KeyRecord
from authz.shares import Shares
from authz.standing import Standing
from authz.valkey import ScriptMissingError, ValkeyError
from common import names
from common.errors import Reason, UplionError
from common.metrics import AUTHZ_LOCAL_GRANTS

logger = logging.getLogger(__name__)
_SCRIPT = Path(__file__).with_name("check.lua").read_text(encoding="utf-8")
_SCRIPT_SHA = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
_WARM_TRIES = 5
_PAUSE_SECONDS = 0.5  # after a failure, before Valkey is asked again: a check must not wait for a dead one


class Commands(Protocol):
    """A connection to Valkey."""

    async def call(self, *command: str | bytes | int) -> Any: ...


class Used(Protocol):
    """Lifetime tokens as the ledger has them: of the account, and of the key."""

    async def used_tokens(self, account: str, key_id: str) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class Grant:
    """An admitted request: its reservation, and what one choice may generate (None: no limit but the model's)."""

    reservation: str
    max_output_tokens: int | None
    standing: Standing


@dataclass(frozen=True, slots=True)
class LimitRules:
    """How much is reserved, for how long (seconds), and what holds without Valkey."""

    default_output_tokens: int = 1024
    most_output_tokens: int = 131_072
    reservation: float = 7200.0
    outage: float = 60.0
    local_share: float = 0.25


class Limits:
    """Decides and reserves. Never lets anybody pass because something failed."""

    def __init__(
        self,
        valkey: Commands,
        used: Used,
        rules: LimitRules,
        new_id: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._valkey = valkey
        self._used = used
        self._rules = rules
        self._new_id = new_id
        self._clock = clock
        self._shares = Shares(rules.local_share)
        self._down_since: float | None = None
        self._ask_again_at = 0.0

    @property
    def degraded(self) -> bool:
        return self._down_since is not None

    async def warm(self) -> None:
        """Connects and loads the script, so that no check waits for that; a Valkey that is away is no error yet."""
        for _ in range(_WARM_TRIES):
            try:
                await self._valkey.call("SCRIPT", "LOAD", _SCRIPT)
                return
            except ValkeyError as problem:
                missing = problem
        logger.warning("Valkey does not answer yet", extra={"problem": repr(missing)})

    async def admit(self, record: KeyRecord, question: Question) -> Grant:
        """Reserves and grants; raises RATE_LIMIT_EXCEEDED, INSUFFICIENT_QUOTA or UNAVAILABLE."""
        reservation = "" if question.kind is Kind.READING else self._new_id()
        if self._down_since is not None and self._clock() < self._ask_again_at:
            return self._locally(record, question, reservation)
        self._ask_again_at = self._clock() + _PAUSE_SECONDS  # meanwhile, if it is down, only this check waits for it
        try:
            reply = await self._ask(record, question, reservation)
        except ValkeyError as problem:
            self._lost(problem)
            return self._locally(record, question, reservation)
        if self._down_since is not None:
            logger.info("Valkey is back")
            self._down_since = None
        return self._granted(record, question, reservation, reply)

    async def _ask(self, record: KeyRecord, question: Question, reservation: str) -> list[Any]:
        output = 0
        if question.kind is Kind.GENERATION:
            wanted = question.output_tokens or self._rules.default_output_tokens
            output = min(wanted, self._rules.most_output_tokens)
        account = record.account
        arguments: list[str | bytes | int] = [
            5,
            names.quota_key(account),
            names.reservations_key(account),
            names.reservation_amounts_key(account),
            names.rate_key(account),
            names.rate_key(account, record.id),
            record.id,
            _or_none(record.account_requests_per_minute),
            _or_none(record.key_requests_per_minute),
            _or_none(record.account_token_budget),
            _or_none(record.key_token_budget),
            reservation,
            int(self._rules.reservation * 1000),
            question.input_tokens,
            output,
            question.choices,
        ]
        reply = await self._run(arguments, "", "")
        if reply[0] == b"LOAD":
            account_used, key_used = await self._load(account, record.id)
            reply = await self._run(arguments, account_used, key_used)
        return reply

    async def _run(self, arguments: list[str | bytes | int], account_used: str | int, key_used: str | int) -> list[Any]:
        try:
            found = await self._valkey.call("EVALSHA", _SCRIPT_SHA, *arguments, account_used, key_used)
        except ScriptMissingError:
            found = await self._valkey.call("EVAL", _SCRIPT, *arguments, account_used, key_used)
        return list(found)

    async def _load(self, account: str, key_id: str) -> tuple[int, int]:
        try:
            return await self._used.used_tokens(account, key_id)
        except Exception as problem:  # asyncpg's many: without the ledger nobody knows what is left
            logger.warning("balances could not be read", extra={"problem": repr(problem)})
            raise _unavailable() from problem

    def _granted(self, record: KeyRecord, question: Question, reservation: str, reply: list[Any]) -> Grant:
        outcome = reply[0]
        if outcome == b"RATE":
            raise rate_limited(reply[1], reply[2] / 1000)
        if outcome == b"QUOTA":
            raise out_of_quota(reply[1], reply[2])
        _, output, rest, limit, remaining, reset_ms, budget, left = reply
        standing = Standing(
            requests_limit=_known(limit),
            requests_remaining=_known(remaining),
            requests_reset_seconds=None if reset_ms < 0 else reset_ms / 1000,
            tokens_limit=_known(budget),
            tokens_remaining=_known(left),
        )
        self._shares.remember(record.id, standing)
        return Grant(reservation, _cap(question, output, rest), standing)

    def _locally(self, record: KeyRecord, question: Question, reservation: str) -> Grant:
        since = self._down_since
        if since is None or self._clock() - since > self._rules.outage:
            raise _unavailable()
        standing = self._shares.take(record.account, record.id, self._reserved_tokens(question))
        if standing is None:
            raise _unavailable()
        AUTHZ_LOCAL_GRANTS.inc()
        cap = question.output_tokens
        if cap is None and standing.tokens_limit is not None:
            cap = self._rules.default_output_tokens
        return Grant(reservation, cap if question.kind is Kind.GENERATION else None, standing)

    def _reserved_tokens(self, question: Question) -> int:
        if question.kind is Kind.READING:
            return 0
        output = 0
        if question.kind is Kind.GENERATION:
            wanted = question.output_tokens or self._rules.default_output_tokens
            output = min(wanted, self._rules.most_output_tokens) * question.choices
        return question.input_tokens + output

    def _lost(self, problem: ValkeyError) -> None:
        self._ask_again_at = self._clock() + _PAUSE_SECONDS
        if self._down_since is None:
            self._down_since = self._clock()
            self._shares.open()
            logger.warning("Valkey does not answer: known keys get a local share", extra={"problem": repr(problem)})


def rate_limited(limit: int, retry_after_seconds: float) -> UplionError:
    return UplionError(
        Reason.RATE_LIMIT_EXCEEDED,
        f"The limit of {limit} requests a minute is reached. Try again in {retry_after_seconds:.1f} s.",
        retry_after_seconds=retry_after_seconds,
        limit=limit,
    )


def out_of_quota(budget: int, left: int) -> UplionError:
    return UplionError(
        Reason.INSUFFICIENT_QUOTA,
        f"The budget of {budget} tokens has {left} left, too few for this request.",
        limit=budget,
        remaining=left,
    )


def _unavailable() -> UplionError:
    return UplionError(
        Reason.UNAVAILABLE, "Limits cannot be checked at the moment. Try again shortly.", retry_after_seconds=1
    )


def _cap(question: Question, granted: int, rest: int) -> int | None:
    """What the router must not exceed: under a budget, what is reserved and no more, so that it is never overspent."""
    return granted if question.kind is Kind.GENERATION and rest >= 0 else None


def _or_none(limit: int | None) -> int:
    return -1 if limit is None else limit


def _known(value: int) -> int | None:
    return None if value < 0 else value
