"""Dispatching: carries a job to a worker and its events back, over as many attempts as it takes.

The attempt number is the fence: one run is open at a time, and nothing of an older one is delivered.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator

from uplion.dispatch.v1.run_pb2 import RunRequest, TokenArray
from uplion.inference.v1.sampling_pb2 import TokenUsage

from common import telemetry
from common.errors import Reason, UplionError
from router import metrics
from router.dispatch.accounting.attempt_registry import AttemptRegistry
from router.dispatch.accounting.attempts import State
from router.dispatch.jobs import Delivery, Job
from router.dispatch.liveness import Liveness
from router.dispatch.progress import Progress
from router.dispatch.records import Record
from router.dispatch.routing_table import RoutingTable
from router.dispatch.runs import AnswerEvent, AttemptFailedError, Run
from router.dispatch.tickets import Accepted, Tickets
from router.dispatch.worker_channels import WorkerChannels
from router.settings import RouterSettings

logger = logging.getLogger(__name__)

_UNMETERED_RETRY_SECONDS = 1.0


class Dispatcher:
    """Runs jobs. Safe for any number at once."""

    def __init__(
        self,
        tickets: Tickets,
        workers: WorkerChannels,
        models: RoutingTable,
        attempts: AttemptRegistry,
        liveness: Liveness,
        settings: RouterSettings,
    ) -> None:
        self._tickets = tickets
        self._workers = workers
        self._models = models
        self._attempts = attempts
        self._liveness = liveness
        self._settings = settings

    async def run(
        self, job: Job, record: Record, seconds: float, delivery: Delivery
    ) -> AsyncGenerator[AnswerEvent, None]:
        """The answer's events in order, from all attempts; the last one has the `usage` of them all.

        Raises UplionError. Closing the generator, or cancelling the task that reads it, cancels the run or takes the
        ticket back. The attempt that is current at the end is left to `AttemptRegistry.request_ended`. `seconds`
        bounds it all.
        """
        record.lane, record.delivery = job.lane, delivery
        route = self._models.route(job.model, job.capability)
        record.model = route.name
        if route.unmetered or self._attempts.blocked:
            message = "Usage cannot be recorded right now."
            raise UplionError(Reason.UNAVAILABLE, message, retry_after_seconds=_UNMETERED_RETRY_SECONDS)
        deadline = asyncio.get_running_loop().time() + seconds
        progress = Progress(job, record, route.context_tokens)
        while True:
            with telemetry.span("router.queue"):
                accepted = await self._tickets.offer(job, record.attempt, deadline)
            self._attempts.attempt_offered(record)
            run = self._start(job, record, accepted, progress, deadline)
            try:
                while True:
                    event = await run.next()
                    progress.add(event)
                    if event.usage is not None:
                        record.usage = event.usage = progress.total(event.usage)
                        yield event
                        return
                    yield event
            except AttemptFailedError as failed:
                self._fail(job, record, progress, failed)
                if progress.complete:
                    record.usage = progress.total(TokenUsage(input_tokens=progress.input_tokens))
                    yield AnswerEvent(usage=record.usage)
                    return
            finally:
                run.close()

    def _start(self, job: Job, record: Record, accepted: Accepted, progress: Progress, deadline: float) -> Run:
        resume = [TokenArray(ids=ids) for ids in progress.token_ids] if progress.delivered else ()
        once = record.delivery is Delivery.ONCE
        own = RunRequest(
            ticket=accepted.ticket,
            resume=resume,
            whole=record.delivery is not Delivery.STREAM,
            once=once,
            receipts=bool(accepted.receipt_subject),
        )
        own.queue_duration.FromNanoseconds(int((record.queue_seconds or 0.0) * 1e9))
        # Serialized messages that follow one another are one message: so a job with megabytes of prompt is serialized
        # once for each attempt, as gRPC would do, and neither copied (a third more time for 3 MB) nor written to.
        request = b"".join((job.run.SerializeToString(), own.SerializeToString()))
        seconds = max(0.001, deadline - asyncio.get_running_loop().time())
        call = self._workers.run(accepted.address, request, seconds, telemetry.outgoing(), once=once)
        return Run(call, record.attempt, self._settings.worker_idle_seconds, self._liveness)

    def _fail(self, job: Job, record: Record, progress: Progress, failed: AttemptFailedError) -> None:
        """Ends a failed attempt and begins the next, unless the answer is complete; raises when none may follow."""
        attempt = record.attempt
        logger.warning(
            "attempt lost", extra={"why": failed.why, "attempt": attempt.number, "worker_id": attempt.worker_id}
        )
        metrics.ROUTER_ATTEMPTS_LOST.labels(record.model).inc()
        if failed.broke_off:
            self._attempts.worker_broke_off(attempt.worker_id)
        progress.output_tokens += attempt.delivered_tokens
        if progress.complete:
            return
        route = self._models.snapshot.routes.get(job.model)
        ends = attempt.number >= self._settings.attempts or not progress.can_go_on(
            route is not None and route.can_resume
        )
        if ends and attempt.state is State.LOST:
            raise failed.error
        # The event of a refused attempt says that another one follows, so one does: if not on a worker, then in the
        # router's event, which ends the request.
        self._attempts.attempt_ended(record, failed.error.reason)
        if ends:
            raise failed.error
