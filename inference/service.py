"""WorkerService: runs the requests whose tickets this worker has offered to take."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterable

import grpc
import grpc.aio
import msgspec
from uplion.dispatch.v1.run_pb2 import RunEvent, RunRequest, TextInput, Vector
from uplion.dispatch.v1.worker_service_pb2_grpc import WorkerServiceServicer

from common import sampling
from common.errors import Reason, UplionError
from inference.engines.engine import Chat, Engine, Generation, Prompt, Text, Tokens
from inference.engines.output import Output
from inference.pacing import pause_seconds
from inference.run import Run
from inference.tickets.held import HeldTicket
from inference.tickets.receipts import Receipts
from inference.tickets.slots import SlotManager
from inference.usage_events import UsageRecorder

_messages = msgspec.json.Decoder(list[dict[str, object]]).decode
_WHOLE_SECONDS = 1.0  # between the events of an answer that is not streamed; a lost worker costs that much of it
_SIGN_SECONDS = 1.0  # between the events of a request that has not begun
_LONG_BYTES = 1 << 14  # of a request; what happens before its first token, or its vectors, may take a while

Context = grpc.aio.ServicerContext[RunRequest, RunEvent]


class RunService(WorkerServiceServicer):
    """Runs an offered ticket's request once, and settles the ticket however the call ends."""

    def __init__(self, engine: Engine, slots: SlotManager, usage: UsageRecorder, receipts: Receipts) -> None:
        self._engine = engine
        self._slots = slots
        self._usage = usage
        self._receipts = receipts

    async def Run(self, request: RunRequest, context: Context) -> AsyncIterator[RunEvent]:
        held = self._slots.claim(request.ticket)
        if held is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "This ticket was not offered, or was taken back.")
        held.streamed = not (request.whole or request.once)
        receipts = self._receipts if request.receipts else None
        left_seconds = context.time_remaining()
        if left_seconds is not None:
            held.deadline_seconds = time.monotonic() + left_seconds
        operation = request.WhichOneof("input") or "none"
        queue = request.queue_duration
        queue_seconds = max(0.0, queue.seconds + queue.nanos / 1e9)
        run = Run(self._engine, self._slots, self._usage, receipts, held, operation, queue_seconds)
        task = asyncio.current_task()
        if task is not None:  # grpc.aio leaves a generator unfinished when the call ends while it writes
            task.add_done_callback(run.close)
        with run:
            vectors: Iterable[Vector] = ()
            beginning = self._begin(held, request, run.output)
            if task is None or request.once or request.ByteSize() <= _LONG_BYTES:
                vectors = await beginning
            else:  # not in a TaskGroup: that cannot stay open while a generator yields
                begun = asyncio.get_running_loop().create_task(beginning, name=f"begin {held.id}")
                task.add_done_callback(lambda _: begun.cancel())
                while not (await asyncio.wait({begun}, timeout=_SIGN_SECONDS))[0] and not run.output.ended:
                    yield RunEvent()  # a sign of life: a worker that is silent for long counts as lost
                if begun.done():
                    vectors = await begun
            sent_at = -math.inf
            while not run.complete:
                if request.once:
                    await run.output.ended_within(None)
                elif request.whole:
                    await run.output.ended_within(_WHOLE_SECONDS)
                elif (pause := pause_seconds(self._slots.busy, sent_at)) > 0:
                    await run.output.ended_within(pause)
                event = run.event(await run.output.take(), vectors)
                sent_at = time.monotonic()
                yield event

    async def _begin(self, held: HeldTicket, request: RunRequest, output: Output) -> Iterable[Vector]:
        """Gives the request to the engine; an embedding is complete then, and its vectors are returned."""
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


def generation_of(attempt_id: str, request: RunRequest) -> Generation:
    """The request as engines take it. Raises INVALID_REQUEST."""
    prompt: Prompt
    if request.WhichOneof("input") == "chat":
        try:
            messages = _messages(request.chat.messages_json)
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
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
