"""Dispatching: carries a job to a worker and its events back, over as many attempts as it takes.

The attempt number is the fence: one run is open at a time, and nothing of an older one is delivered.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator

import grpc
import grpc.aio
from uplion.dispatch.v1.run_pb2 import RunEvent, TokenArray
from uplion.inference.v1.sampling_pb2 import FINISH_REASON_LENGTH, BudgetCut, TokenUsage

from common import names, telemetry
from common.errors import ELSEWHERE, STATUS_DETAILS_METADATA, Reason, UplionError, from_rpc_error
from router import metrics
from router.dispatch.jobs import Job
from router.dispatch.records import Record
from router.dispatch.routing_table import RoutingTable
from router.dispatch.tickets import Accepted, Tickets
from router.dispatch.usage_events import Usage
from router.dispatch.worker_channels import RunCall, WorkerChannels
from router.settings import RouterSettings

logger = logging.getLogger(__name__)

_UNMETERED_RETRY_SECONDS = 1.0
# A stranger's status (no ErrorInfo of ours) saying that connection or process are gone, rather than the request bad.
_GONE = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
)


class _LostError(Exception):
    """The attempt is over without a result; another one may follow.

    `owed`: only the router can account for it. `broke`: the worker itself may be lost. `error` is what the client gets
    when no other attempt follows.
    """

    def __init__(self, why: str, *, owed: bool, broke: bool = False, error: UplionError | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.owed = owed
        self.broke = broke
        self.error = error or UplionError(Reason.WORKER_LOST, "The worker that ran this request was lost.")


class _Progress:
    """What the client was given so far, over all attempts: enough to go on elsewhere."""

    __slots__ = (
        "_cap",
        "_context_tokens",
        "delivered",
        "ended",
        "input_tokens",
        "output_tokens",
        "resumable",
        "token_ids",
    )

    def __init__(self, job: Job, context_tokens: int) -> None:
        self._cap = job.output_cap
        self._context_tokens = context_tokens
        self.token_ids: list[list[int]] = [[] for _ in range(job.choices)]
        self.ended = 0  # choices that have their finish reason
        self.delivered = False
        self.resumable = True
        self.input_tokens = 0
        self.output_tokens = 0  # of the attempts before this one

    def add(self, event: RunEvent, record: Record) -> None:
        if event.input_tokens and not self.delivered:
            self.input_tokens = record.input_tokens = event.input_tokens
        deltas = event.deltas[:]  # iterating over the container itself takes four times as long
        for delta in deltas:
            ids = delta.token_ids
            if delta.index < len(self.token_ids):
                self.token_ids[delta.index].extend(ids)
            if delta.parts and not ids:
                self.resumable = False
            record.delivered_tokens += len(ids)
            if delta.finish_reason:
                self.ended += 1
                if delta.index == 0:
                    record.finish_reason = delta.finish_reason
                if self._cap is not None and delta.finish_reason == FINISH_REASON_LENGTH:
                    record.budget_cut = self._cut(self._cap)
        if deltas or event.vectors:
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


class _Run:
    """One open run on a worker. Says lost where its worker vanished, or has been silent for too long.

    The attempt's usage event is the worker's to publish from the moment it answers: a run cancelled before may never
    have reached it. One that answers at its end only is the worker's from the start: if it never had it, the ticket
    comes back, and the router tells what it remembers.
    """

    __slots__ = ("_call", "_complete", "_heard_at", "_idle_seconds", "_loop", "_record", "_silent", "_timer")

    def __init__(self, call: RunCall, record: Record, idle_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._call = call
        self._record = record
        self._idle_seconds = idle_seconds
        self._heard_at = self._loop.time()
        self._silent = False
        self._complete = False
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            record.owed = False
        self._timer = self._loop.call_later(idle_seconds, self._look)  # one for the run, moved only when it fires

    def _look(self) -> None:
        rest = self._heard_at + self._idle_seconds - self._loop.time()
        if rest > 0:
            self._timer = self._loop.call_later(rest, self._look)
        else:
            self._silent = True
            self._call.cancel()

    async def next(self) -> RunEvent:
        """The next event; raises _LostError, or what the worker answered."""
        try:
            call = self._call
            event = await (call if isinstance(call, grpc.aio.UnaryUnaryCall) else call.read())
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            why = "the worker fell silent" if self._silent else "the call was cut"
            raise _LostError(why, owed=True, broke=True) from None
        except grpc.aio.AioRpcError as problem:
            raise self._verdict(problem) from problem
        if not isinstance(event, RunEvent):  # grpc.aio.EOF
            raise _LostError("the stream ended without usage", owed=True)
        self._heard_at = self._loop.time()
        self._record.owed = False
        self._complete = event.HasField("usage")
        return event

    def _verdict(self, problem: grpc.aio.AioRpcError) -> Exception:
        code = problem.code()
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return _LostError("the worker had taken its offer back", owed=True)
        if any(name == STATUS_DETAILS_METADATA for name, _ in problem.trailing_metadata() or ()):
            error = from_rpc_error(problem)
            self._record.owed = False
            return _LostError(error.message, owed=False, error=error) if error.reason in ELSEWHERE else error
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return UplionError(Reason.DEADLINE_EXCEEDED, "The request's time ran out before its answer was complete.")
        if code in _GONE:
            return _LostError(f"the connection broke: {code.name}", owed=True, broke=True)
        return _LostError(
            f"the worker could not take it: {code.name}",
            owed=True,
            error=UplionError(Reason.UPSTREAM_FAILED, "The worker could not take this request."),
        )

    def close(self) -> None:
        """Cancels the run, unless it is complete: its worker is then busy with the ledger and must not be disturbed."""
        self._timer.cancel()
        if not self._complete:
            self._call.cancel()


class Dispatcher:
    """Runs jobs. Safe for any number at once."""

    def __init__(
        self, tickets: Tickets, workers: WorkerChannels, models: RoutingTable, usage: Usage, settings: RouterSettings
    ) -> None:
        self._tickets = tickets
        self._workers = workers
        self._models = models
        self._usage = usage
        self._settings = settings

    def knows(self, model: str) -> bool:
        """Whether there is such a model now."""
        return model in self._models.snapshot.routes

    async def run(self, job: Job, record: Record, seconds: float) -> AsyncGenerator[RunEvent, None]:
        """The job's events in order, from however many attempts; the last one carries `usage` of them all.

        Raises UplionError. Closing the generator, or cancelling who reads it, cancels the run or takes the ticket back;
        what is left to account for is then in `record.owed`. `seconds` bounds the whole.
        """
        route = self._models.route(job.model, job.operation)
        record.model = route.name
        if route.unmetered or self._usage.blocked:
            message = "Usage cannot be recorded right now."
            raise UplionError(Reason.UNAVAILABLE, message, retry_after_seconds=_UNMETERED_RETRY_SECONDS)
        deadline = asyncio.get_running_loop().time() + seconds
        progress = _Progress(job, route.context_tokens)
        while True:
            with telemetry.span("router.queue"):
                accepted = await self._tickets.offer(job, record, deadline)
            self._usage.worker_lives(accepted.worker_id)
            run = self._start(job, record, accepted, progress, deadline)
            try:
                while True:
                    event = await run.next()
                    progress.add(event, record)
                    last = event.HasField("usage")
                    if last:
                        record.attempt_usage = TokenUsage()
                        record.attempt_usage.CopyFrom(event.usage)
                        record.usage = progress.total(event.usage)
                        event.usage.CopyFrom(record.usage)
                    yield event
                    if last:
                        return
            except _LostError as lost:
                self._account(job, record, progress, lost)
                if progress.complete:
                    record.usage = progress.total(TokenUsage(input_tokens=progress.input_tokens))
                    yield RunEvent(usage=record.usage)
                    return
            finally:
                run.close()

    def _start(self, job: Job, record: Record, accepted: Accepted, progress: _Progress, deadline: float) -> _Run:
        request = job.run  # one attempt at a time: no copy of a large prompt is needed
        request.ticket.CopyFrom(accepted.ticket)
        if progress.delivered:
            del request.resume[:]
            request.resume.extend(TokenArray(ids=ids) for ids in progress.token_ids)
        seconds = max(0.001, deadline - asyncio.get_running_loop().time())
        call = self._workers.run(accepted.address, request, seconds, telemetry.outgoing())
        return _Run(call, record, self._settings.worker_idle_seconds)

    def _account(self, job: Job, record: Record, progress: _Progress, lost: _LostError) -> None:
        """Settles a lost attempt and makes way for the next; raises when there is none."""
        logger.warning(
            "attempt lost", extra={"why": lost.why, "attempt": record.attempt, "worker_id": record.worker_id}
        )
        metrics.ROUTER_ATTEMPTS_LOST.labels(record.model).inc()
        if lost.broke:
            self._usage.worker_broke(record.worker_id)
        progress.output_tokens += record.delivered_tokens
        record.owed = lost.owed and bool(record.identity.reservation)
        if progress.complete:
            return
        route = self._models.snapshot.routes.get(job.model)
        if record.attempt >= self._settings.attempts or not progress.can_go_on(route is not None and route.can_resume):
            if not lost.owed:  # its worker said that another attempt may follow; the one that does not is the last
                self._leave(record, lost.error)
            raise lost.error
        self._leave(record, lost.error)

    def _leave(self, record: Record, error: UplionError) -> None:
        """On to the next attempt: the event of this one is ours, or its worker's, who may die before it is safe."""
        if record.identity.reservation:
            event = record.usage_event(error, last=False)
            if record.owed and record.whole:
                record.withheld.append(event)
            elif record.owed:
                self._usage.report(event)
            else:
                attempt_id = names.attempt_id(event.request_id, event.attempt)
                self._usage.remember(attempt_id, record.worker_id, lambda: event)
        record.next_attempt()
