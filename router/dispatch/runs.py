"""A run: one attempt on a worker, as its router reads it."""

import asyncio
from dataclasses import dataclass, field

import grpc
import grpc.aio
from uplion.dispatch.v1.run_pb2 import RunEvent
from uplion.inference.v1.sampling_pb2 import TokenUsage

from common.deltas import Delta, from_message
from common.errors import ELSEWHERE, STATUS_DETAILS_METADATA, Reason, UplionError, from_rpc_error
from router.dispatch.accounting.attempts import Attempt
from router.dispatch.liveness import Liveness
from router.dispatch.worker_channels import RunCall

# A status without ErrorInfo of ours, saying that connection or process are gone, rather than the request bad.
_GONE = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
)


class AttemptFailedError(Exception):
    """The attempt ended without a result, LOST or REFUSED; another one may follow.

    `broke_off`: the worker itself may be lost. `error` is what the client gets when no other attempt follows.
    """

    def __init__(self, why: str, *, broke_off: bool = False, error: UplionError | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.broke_off = broke_off
        self.error = error or UplionError(Reason.WORKER_LOST, "The worker that ran this request was lost.")


@dataclass(slots=True)
class AnswerEvent:
    """What one event of a run adds to the answer. Whoever reads it last owns the deltas."""

    deltas: list[Delta] = field(default_factory=list)
    vectors: list[bytes] = field(default_factory=list)  # embeddings: little-endian float32 each
    input_tokens: int = 0  # 0: not in this event
    usage: TokenUsage | None = None  # in the last event only


class Run:
    """One open run on a worker; moves its attempt from OFFERED on.

    A unary call counts as answered from the start: if it never arrived, its ticket comes back, and the registry
    publishes what it remembers.
    """

    __slots__ = (
        "_attempt",
        "_call",
        "_complete",
        "_heard_at",
        "_idle_seconds",
        "_liveness",
        "_loop",
        "_silent",
        "_timer",
    )

    def __init__(self, call: RunCall, attempt: Attempt, idle_seconds: float, liveness: Liveness) -> None:
        self._loop = asyncio.get_running_loop()
        self._call = call
        self._attempt = attempt
        self._idle_seconds = idle_seconds  # without any event; then the worker counts as lost
        self._heard_at = self._loop.time()
        self._silent = False
        self._complete = False
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            attempt.answered()
        self._timer = self._loop.call_later(idle_seconds, self._look)  # one for the run, moved only when it fires
        self._liveness = liveness
        liveness.begin(attempt.worker_id, self)

    def _look(self) -> None:
        rest = self._heard_at + self._idle_seconds - self._loop.time()
        if rest > 0:
            self._timer = self._loop.call_later(rest, self._look)
        else:
            self.worker_lost()

    def worker_lost(self) -> None:
        """Its worker has been silent for too long; `next` raises that."""
        self._silent = True
        self._call.cancel()

    async def next(self) -> AnswerEvent:
        """The next event; raises AttemptFailedError, or UplionError where no other attempt may follow."""
        try:
            call = self._call
            event = await (call if isinstance(call, grpc.aio.UnaryUnaryCall) else call.read())
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise self._lost("the worker fell silent" if self._silent else "the call was cut", broke_off=True) from None
        except grpc.aio.AioRpcError as problem:
            raise self._failure(problem) from problem
        if not isinstance(event, RunEvent):  # grpc.aio.EOF
            raise self._lost("the stream ended without usage")
        self._heard_at = self._loop.time()
        self._liveness.heard(self._attempt.worker_id)
        self._attempt.answered()
        usage: TokenUsage | None = None
        if event.HasField("usage"):
            usage = TokenUsage()
            usage.CopyFrom(event.usage)  # it is remembered for a while, and must not keep the whole event in memory
            self._complete = True
            self._attempt.completed(usage)
        deltas = [from_message(delta) for delta in event.deltas[:]]  # a slice is read in a quarter of the time
        vectors = [] if deltas else [vector.values for vector in event.vectors]  # an embedding has no deltas
        return AnswerEvent(deltas, vectors, event.input_tokens, usage)

    def _lost(self, why: str, *, broke_off: bool = False, error: UplionError | None = None) -> AttemptFailedError:
        self._attempt.lost()
        return AttemptFailedError(why, broke_off=broke_off, error=error)

    def _failure(self, problem: grpc.aio.AioRpcError) -> Exception:
        code = problem.code()
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return self._lost("the worker had taken its offer back")
        if any(name == STATUS_DETAILS_METADATA for name, _ in problem.trailing_metadata() or ()):
            error = from_rpc_error(problem)
            self._attempt.refused()
            return AttemptFailedError(error.message, error=error) if error.reason in ELSEWHERE else error
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return UplionError(Reason.DEADLINE_EXCEEDED, "The request's time ran out before its answer was complete.")
        if code in _GONE:
            return self._lost(f"the connection broke: {code.name}", broke_off=True)
        error = UplionError(Reason.UPSTREAM_FAILED, "The worker could not take this request.")
        return self._lost(f"the worker could not take it: {code.name}", error=error)

    def close(self) -> None:
        """Cancels the run, unless it is complete: its worker is then busy with the ledger and must not be disturbed."""
        self._timer.cancel()
        self._liveness.end(self._attempt.worker_id, self)
        if not self._complete:
            self._call.cancel()
