"""Progress: what a client was given so far, over all attempts; enough for another attempt to go on after it."""

import time

from uplion.inference.v1.sampling_pb2 import FINISH_REASON_LENGTH, BudgetCut, TokenUsage

from router.dispatch.jobs import Job
from router.dispatch.records import Record
from router.dispatch.runs import AnswerEvent


class Progress:
    """The progress of one request. Its record is kept current too."""

    __slots__ = (
        "_cap",
        "_context_tokens",
        "_record",
        "delivered",
        "ended",
        "input_tokens",
        "output_tokens",
        "resumable",
        "token_ids",
    )

    def __init__(self, job: Job, record: Record, context_tokens: int) -> None:
        self._record = record
        self._cap = job.output_cap
        self._context_tokens = context_tokens
        self.token_ids: list[list[int]] = [[] for _ in range(job.choices)]
        self.ended = 0  # choices that have their finish reason
        self.delivered = False
        self.resumable = True  # there are token ids behind everything that was delivered
        self.input_tokens = 0
        self.output_tokens = 0  # of the attempts before this one

    def add(self, event: AnswerEvent) -> None:
        """An event of the current attempt is about to be delivered."""
        record = self._record
        if event.input_tokens and not self.delivered:
            self.input_tokens = record.input_tokens = event.input_tokens
        for delta in event.deltas:
            ids = delta.token_ids
            if delta.index < len(self.token_ids):
                self.token_ids[delta.index].extend(ids)
            if delta.parts and not ids:
                self.resumable = False
            record.attempt.delivered_tokens += len(ids)
            if delta.finish_reason:
                self.ended += 1
                if delta.index == 0:
                    record.finish_reason = delta.finish_reason
                if self._cap is not None and delta.finish_reason == FINISH_REASON_LENGTH:
                    record.budget_cut = self._cut(self._cap)
        if event.deltas or event.vectors:
            if record.first_token_at is None:
                record.first_token_at = time.monotonic()
            self.delivered = True
            self.resumable = self.resumable and not event.vectors

    def _cut(self, cap: BudgetCut) -> BudgetCut | None:
        """The budget, unless the model's context was full before it."""
        room = self._context_tokens - self.input_tokens if self._context_tokens else cap.max_output_tokens
        return cap if cap.max_output_tokens <= room else None

    @property
    def complete(self) -> bool:
        """The client has the whole answer, whatever became of the worker."""
        return bool(self.token_ids) and self.ended == len(self.token_ids)

    def can_go_on(self, resume: bool) -> bool:
        """Whether another attempt can continue: from nothing, or from the tokens, unless some choices have ended."""
        return not self.delivered or (resume and self.resumable and not self.ended)

    def total(self, usage: TokenUsage) -> TokenUsage:
        """What the last attempt counted, with the output of those before it."""
        if not self.output_tokens:
            return usage
        total = TokenUsage()
        total.CopyFrom(usage)
        total.output_tokens += self.output_tokens
        return total
