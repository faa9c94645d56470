"""The record of one request: what happened to it and when, for its log line, its metrics and its usage events."""

import time
from collections.abc import Iterable

from uplion.inference.v1.sampling_pb2 import FINISH_REASON_UNSPECIFIED, BudgetCut, FinishReason, TokenUsage

from common import names
from common.deltas import Delta
from common.identity import Identity
from common.operations import Operation
from router.dispatch.accounting.attempts import Attempt
from router.dispatch.jobs import Delivery


class Record:
    """Written to by surface and dispatcher, read at the request's end. Times are monotonic seconds."""

    __slots__ = (
        "attempts",
        "begun_at",
        "budget_cut",
        "capability",
        "delivery",
        "ended_at",
        "finish_reason",
        "first_token_at",
        "given_exactly",
        "given_tokens",
        "identity",
        "input_tokens",
        "lane",
        "model",
        "released",
        "stream",
        "surface",
        "usage",
    )

    def __init__(self, identity: Identity, operation: Operation) -> None:
        assert operation.capability is not None  # only what runs a model is recorded
        self.identity = identity
        self.capability = operation.capability
        self.surface = operation.dialect.value
        self.stream = False
        self.released = False  # authz has been told that it is over
        self.delivery = Delivery.STREAM  # the dispatcher's argument
        self.model = ""  # a model that exists: safe as a metric label; empty until the routing table knew it
        self.lane = names.LANE_DEFAULT  # the job's, once there is one
        self.attempts = [Attempt(1)]  # the last one is current
        self.begun_at = time.monotonic()
        self.ended_at: float | None = None
        self.first_token_at: float | None = None
        self.given_tokens = 0  # of a stream, all attempts: written to the edge
        self.given_exactly = True  # False: some of what was written has no token ids, so `given_tokens` is a guess
        self.input_tokens = 0
        self.usage: TokenUsage | None = None  # of all attempts, once the answer is complete
        self.finish_reason: FinishReason.ValueType = FINISH_REASON_UNSPECIFIED  # of the first choice
        self.budget_cut: BudgetCut | None = None  # a budget ended the answer: for the client and the log

    @property
    def attempt(self) -> Attempt:
        """The current one."""
        return self.attempts[-1]

    def given(self, deltas: Iterable[Delta]) -> None:
        """Deltas of a stream were written to the edge."""
        for delta in deltas:
            if delta.token_ids:
                self.given_tokens += len(delta.token_ids)
            elif delta.parts:
                self.given_tokens += 1
                self.given_exactly = False

    def given_of(self, attempt: Attempt) -> int:
        """How many of an attempt's tokens were written to the edge: what earlier attempts made went before them."""
        before = 0
        for earlier in self.attempts:
            if earlier is attempt:
                break
            before += earlier.delivered_tokens
        return max(0, self.given_tokens - before)

    @property
    def seconds(self) -> float:
        """From arrival to end, or until now."""
        return (self.ended_at or time.monotonic()) - self.begun_at

    @property
    def queue_seconds(self) -> float | None:
        """From the current attempt's ticket to the offer that was accepted."""
        return self.attempt.queue_seconds

    @property
    def first_token_seconds(self) -> float | None:
        """From arrival to the first token."""
        return None if self.first_token_at is None else self.first_token_at - self.begun_at

    def facts(self, status: str) -> dict[str, object]:
        """The log line: counts and times, never text."""
        facts: dict[str, object] = {
            "surface": self.surface,
            "operation": self.capability.value,
            "model": self.model,
            "stream": self.stream,
            "status": status,
            "attempts": self.attempt.number,
            "milliseconds": round(self.seconds * 1000, 1),
        }
        if (queued := self.queue_seconds) is not None:
            facts["queue_milliseconds"] = round(queued * 1000, 1)
        if (first := self.first_token_seconds) is not None:
            facts["first_token_milliseconds"] = round(first * 1000, 1)
        if self.usage is not None:
            facts["input_tokens"] = self.usage.input_tokens
            facts["output_tokens"] = self.usage.output_tokens
        if self.budget_cut is not None:
            facts["budget"] = self.budget_cut.limit
        return facts
