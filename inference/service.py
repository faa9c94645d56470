"""WorkerService: what a router opens for a ticket it was offered."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterable

import grpc
import grpc.aio
from uplion.billing.v1 import usage_event_pb2
from uplion.billing.v1.usage_event_pb2 import AttemptStatus
from uplion.dispatch.v1.run_pb2 import RunEvent, RunRequest, TextInput, Vector
from uplion.dispatch.v1.worker_service_pb2_grpc import WorkerServiceServicer

from common import sampling, telemetry
from common.deltas import Delta, to_message
from common.errors import Reason, UplionError
from inference.engines.engine import Chat, Engine, Generation, Output, Prompt, Text, Tokens
from inference.tickets.held import HeldTicket
from inference.tickets.slots import SlotManager
from inference.usage_events import Attempt, UsageRecorder

logger = logging.getLogger(__name__)

# Looked up once: an enum's attribute goes through Python each time.
COMPLETED = usage_event_pb2.ATTEMPT_STATUS_COMPLETED
CANCELLED = usage_event_pb2.ATTEMPT_STATUS_CANCELLED
FAILED = usage_event_pb2.ATTEMPT_STATUS_FAILED
REFUSED = usage_event_pb2.ATTEMPT_STATUS_REFUSED
TIMED_OUT = usage_event_pb2.ATTEMPT_STATUS_TIMED_OUT
_STATUS: dict[Reason, "AttemptStatus.ValueType"] = {
    Reason.INVALID_REQUEST: REFUSED,
    Reason.UNSUPPORTED_PARAMETER: REFUSED,
    Reason.CONTEXT_LENGTH_EXCEEDED: REFUSED,
    Reason.DEADLINE_EXCEEDED: TIMED_OUT,
    Reason.CANCELLED: CANCELLED,
}

_WHOLE_SECONDS = 1.0  # between events that nobody reads as they come; what a lost worker costs such a request

Context = grpc.aio.ServicerContext[RunRequest, RunEvent]


class RunService(WorkerServiceServicer):
    """Runs what was offered, exactly once, and settles its ticket however the call ends."""

    def __init__(self, engine: Engine, slots: SlotManager, usage: UsageRecorder) -> None:
        self._engine = engine
        self._slots = slots
        self._usage = usage

    async def Run(  # the proto's name
        self, request: RunRequest, context: Context
    ) -> AsyncIterator[RunEvent]:
        held = self._slots.claim(request.ticket.request_id, request.ticket.attempt)
        if held is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "This ticket was not offered, or was taken back.")
        run = _Run(self._engine, self._slots, self._usage, held, request.WhichOneof("input") or "none")
        task = asyncio.current_task()
        if task is not None:  # grpc.aio leaves a generator unfinished when the call ends while it writes
            task.add_done_callback(run.close)
        try:
            vectors = await self._begin(held, request, run.output)
            while not run.complete:
                if request.once:
                    await run.output.over(None)
                elif request.whole:
                    await run.output.over(_WHOLE_SECONDS)
                yield run.event(await run.output.take(), vectors)
        except UplionError as error:
            run.ended(_STATUS.get(error.reason, FAILED), error.reason)
            raise
        except Exception:
            run.ended(FAILED, Reason.INTERNAL)
            raise
        finally:
            run.close()

    async def _begin(self, held: HeldTicket, request: RunRequest, output: Output) -> Iterable[Vector]:
        """Gives the work to the engine; returns vectors when there were texts to embed, which ends the output."""
        kind = request.WhichOneof("input")
        if kind == "embedding":
            inputs = [_text(item, f"input[{index}]") for index, item in enumerate(request.embedding.items)]
            answer = await self._engine.embed(held.id, inputs)
            output.begin(answer.input_tokens)
            output.compute_seconds = answer.compute_seconds
            output.end()
            return [Vector(values=values) for values in answer.values]
        await self._engine.generate(generation_of(held.id, request), output)
        return ()


class _Run:
    """One run: what was told of it, how it ended, and that it is settled exactly once."""

    def __init__(
        self, engine: Engine, slots: SlotManager, usage: UsageRecorder, held: HeldTicket, operation: str
    ) -> None:
        self._engine = engine
        self._slots = slots
        self._usage = usage
        self._held = held
        self.output = Output()
        self._attempt = Attempt(held.ticket, operation, self.output, time.time(), telemetry.traceparent.get())
        self._status: AttemptStatus.ValueType = CANCELLED  # unless it ends another way
        self._reason: Reason | None = Reason.CANCELLED
        self._told = False
        self._closed = False
        held.run = self

    @property
    def complete(self) -> bool:
        """The last event was made."""
        return self._status == COMPLETED

    def event(self, deltas: list[Delta], vectors: Iterable[Vector]) -> RunEvent:
        """The next event of the stream; the first and the last one say more."""
        output = self.output
        event = RunEvent(deltas=map(to_message, deltas), vectors=vectors)
        if not self._told:
            self._told = True
            event.input_tokens = output.input_tokens
        if output.drained:
            event.usage.input_tokens = output.input_tokens
            event.usage.cached_tokens = output.cached_tokens
            event.usage.output_tokens = output.output_tokens
            self.ended(COMPLETED, None)
        return event

    def ended(self, status: "AttemptStatus.ValueType", reason: Reason | None) -> None:
        self._status, self._reason = status, reason

    def close(self, _: object = None) -> None:
        """Stops the engine if it still works on this, and settles the ticket. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if not self.output.drained:
            self._engine.cancel(self._held.id)
        if self._status == CANCELLED and self._held.deadline_seconds <= time.time():
            self.ended(TIMED_OUT, Reason.DEADLINE_EXCEEDED)  # the caller's own clock was a little faster
        self._slots.settle(self._held, self._usage.ran(self._attempt, self._status, self._reason))

    def expire(self) -> None:
        """Ends it, since the deadline is over."""
        self.output.fail(UplionError(Reason.DEADLINE_EXCEEDED, "The request's time is over."))


def generation_of(attempt_id: str, request: RunRequest) -> Generation:
    """The engine's view of a request."""
    prompt: Prompt
    if request.WhichOneof("input") == "chat":
        try:
            messages = json.loads(request.chat.messages_json)
        except ValueError as problem:
            raise UplionError(Reason.INVALID_REQUEST, "The messages are not JSON.", param="messages") from problem
        prompt = Chat(messages)
    elif request.WhichOneof("input") == "completion":
        prompt = _text(request.completion, "prompt")
    else:
        raise UplionError(Reason.INVALID_REQUEST, "The request has no input.")
    return Generation(
        id=attempt_id,
        prompt=prompt,
        sampling=sampling.from_message(request.sampling),
        resume=tuple(tuple(array.ids) for array in request.resume),
    )


def _text(item: TextInput, param: str) -> Text | Tokens:
    kind = item.WhichOneof("prompt")
    if kind == "text":
        return Text(item.text)
    if kind == "tokens":
        return Tokens(item.tokens.ids)
    raise UplionError(Reason.INVALID_REQUEST, "Neither text nor tokens were given.", param=param)
