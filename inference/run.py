"""One run of an attempt: the events of its stream, how it ended, and that its ticket is settled exactly once."""

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from uplion.billing.v1 import usage_event_pb2
from uplion.billing.v1.usage_event_pb2 import AttemptStatus
from uplion.dispatch.v1.run_pb2 import RunEvent, Vector

from common import telemetry
from common.deltas import Delta, to_message
from common.errors import Reason, UplionError
from inference.engines.engine import Engine
from inference.engines.output import Output
from inference.tickets.held import HeldTicket
from inference.tickets.receipts import Receipts
from inference.tickets.slots import SlotManager
from inference.usage_events import Attempt, UsageRecorder, token_usage

# Read once: an attribute of the enum goes through Python each time.
_COMPLETED = usage_event_pb2.ATTEMPT_STATUS_COMPLETED
_CANCELLED = usage_event_pb2.ATTEMPT_STATUS_CANCELLED
_FAILED = usage_event_pb2.ATTEMPT_STATUS_FAILED
_REFUSED = usage_event_pb2.ATTEMPT_STATUS_REFUSED
_TIMED_OUT = usage_event_pb2.ATTEMPT_STATUS_TIMED_OUT
_COSTS = frozenset({_COMPLETED, _CANCELLED, _TIMED_OUT})  # others cost nothing, whatever the client was given
_STATUS: dict[Reason, "AttemptStatus.ValueType"] = {  # every other reason: failed
    Reason.INVALID_REQUEST: _REFUSED,
    Reason.UNSUPPORTED_PARAMETER: _REFUSED,
    Reason.CONTEXT_LENGTH_EXCEEDED: _REFUSED,
    Reason.DEADLINE_EXCEEDED: _TIMED_OUT,
    Reason.CANCELLED: _CANCELLED,
}


class Run:
    """A context manager: leaving it records how the run ended. A run that is left early was cancelled."""

    def __init__(
        self,
        engine: Engine,
        slots: SlotManager,
        usage: UsageRecorder,
        receipts: Receipts | None,
        held: HeldTicket,
        operation: str,
        queue_seconds: float,
    ) -> None:
        self._engine = engine
        self._slots = slots
        self._usage = usage
        self._receipts = receipts  # None: its router sends none
        self._held = held
        self.output = Output()
        self._attempt = Attempt(held.ticket, operation, self.output, queue_seconds, telemetry.traceparent.get())
        self._status: AttemptStatus.ValueType = _CANCELLED
        self._reason: Reason | None = Reason.CANCELLED
        self._begun = False  # the first event was made
        self._closed = False
        held.run = self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, UplionError):
            self._end(_STATUS.get(error.reason, _FAILED), error.reason)
        elif isinstance(error, Exception):  # no CancelledError or GeneratorExit: the call was not cancelled
            self._end(_FAILED, Reason.INTERNAL)
        self.close()

    @property
    def complete(self) -> bool:
        """Whether the last event was made."""
        return self._status == _COMPLETED

    def event(self, deltas: list[Delta], vectors: Iterable[Vector]) -> RunEvent:
        """The next event of the stream; the first one has the prompt's tokens, the last one the usage."""
        output = self.output
        event = RunEvent(vectors=vectors)
        for delta in deltas:
            to_message(delta, event.deltas.add())
        if not self._begun:
            self._begun = True
            event.input_tokens = token_usage(output).input_tokens
        if output.drained:
            event.usage.CopyFrom(token_usage(output))
            self._end(_COMPLETED, None)
        return event

    def expire(self) -> None:
        """Ends it, since the deadline is over."""
        self.output.fail(UplionError(Reason.DEADLINE_EXCEEDED, "The request's time is over."))

    def close(self, _: object = None) -> None:
        """Stops the engine's work on it, and settles the ticket with its usage event. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if not self.output.drained:
            self._engine.cancel(self._held.id)
        if self._status == _CANCELLED and self._held.deadline_seconds <= time.monotonic():
            self._end(_TIMED_OUT, Reason.DEADLINE_EXCEEDED)  # the caller's own clock was a little faster
        measured = self._usage.ran(self._attempt, self._status, self._reason)
        if self._receipts is not None and self._status in _COSTS:
            self._receipts.run_ended(self._held, measured)
        else:
            self._slots.settle(self._held, measured)

    def _end(self, status: "AttemptStatus.ValueType", reason: Reason | None) -> None:
        self._status, self._reason = status, reason
