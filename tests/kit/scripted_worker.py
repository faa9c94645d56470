"""A scripted worker: it speaks the worker protocol to a real router, runs a test's script, and records what it saw."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.dispatch.v1 import run_pb2, ticket_pb2, worker_service_pb2_grpc, worker_state_pb2
from uplion.inference.v1 import sampling_pb2

from common.names import KV_WORKERS, STREAM_TASKS, token
from messaging.bus import Bus
from messaging.pull import Pull

Script = Callable[[run_pb2.RunRequest, Any], AsyncIterator[run_pb2.RunEvent]]
ALL = (1, 2, 3, 4)


def word(index: int, text: str, *ids: int, finish: int = 0) -> run_pb2.Delta:
    parts = [run_pb2.Part(text=text)] if text else []
    return run_pb2.Delta(index=index, parts=parts, token_ids=ids, finish_reason=finish)  # type: ignore[arg-type]


async def hello(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
    """Two words for each choice, one event for each word."""
    choices = request.sampling.choices or 1
    yield run_pb2.RunEvent(input_tokens=7)
    yield run_pb2.RunEvent(deltas=[word(index, "Hello", 1) for index in range(choices)])
    yield run_pb2.RunEvent(
        deltas=[word(index, " wörld", 2, finish=sampling_pb2.FINISH_REASON_STOP) for index in range(choices)]
    )
    yield run_pb2.RunEvent(usage=sampling_pb2.TokenUsage(input_tokens=7, cached_tokens=3, output_tokens=2 * choices))


@dataclass
class ScriptedWorker(worker_service_pb2_grpc.WorkerServiceServicer):
    """Pulls tickets, offers, runs a script. Says what it saw."""

    bus: Bus
    model: str
    script: Script = hello
    slots: int = 64
    swallows: bool = False  # takes tickets and offers nothing, as one that was stopped or killed
    mute: bool = False  # tells the meter nothing, as one that dies before it did
    capabilities: tuple[int, ...] = ALL
    worker_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    address: str = ""
    offered: list[ticket_pb2.Ticket] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    receipts: list[ticket_pb2.Receipt] = field(default_factory=list)
    receipt_subject: str = ""
    runs: list[run_pb2.RunRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    server: Any = None
    task: Any = None
    proxy: Any = None  # the TcpProxy in front of it, if there is one

    async def Run(  # noqa: N802  # the RPC's name
        self, request: run_pb2.RunRequest, context: Any
    ) -> AsyncIterator[run_pb2.RunEvent]:
        seen = run_pb2.RunRequest()
        seen.CopyFrom(request)
        self.runs.append(seen)
        try:
            whole = run_pb2.RunEvent()
            async for event in self.script(request, context):
                whole.MergeFrom(event)
                if not request.once or event.HasField("usage"):
                    yield whole if request.once else event
                if event.HasField("usage"):
                    await self.publish(request, billing.ATTEMPT_STATUS_COMPLETED, event.usage)
        except asyncio.CancelledError:
            self.cancelled.append(request.ticket.request_id)
            await self.publish(request, billing.ATTEMPT_STATUS_CANCELLED, sampling_pb2.TokenUsage())
            raise

    async def publish(self, request: run_pb2.RunRequest, status: int, usage: sampling_pb2.TokenUsage) -> None:
        if self.mute:
            return
        ticket = request.ticket
        event = billing.UsageEvent(
            request_id=ticket.request_id,
            attempt=ticket.attempt,
            model=self.model,
            usage=usage,
            status=status,  # type: ignore[arg-type]
            last=True,
            provider="worker",
        )
        await self.bus.publish_core(f"usage.{token(self.model)}", event.SerializeToString())

    async def kill(self) -> None:
        """Ends it as kill -9 does: no more pulls, every stream broken."""
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.bus._client.close()
        await self.server.stop(None)

    async def announce(self, *, draining: bool = False, unmetered: bool = False) -> None:
        state = worker_state_pb2.WorkerState(
            worker_id=self.worker_id,
            address=self.address,
            model=self.model,
            capabilities=self.capabilities,  # type: ignore[arg-type]
            context_tokens=2048,
            draining=draining,
            unmetered=unmetered,
        )
        bucket = await self.bus.js.key_value(KV_WORKERS)
        await bucket.put(self.worker_id, state.SerializeToString())

    async def vanish(self) -> None:
        """As its entry's time runs out."""
        await (await self.bus.js.key_value(KV_WORKERS)).delete(self.worker_id)

    async def take_tickets(self) -> None:
        consumer = await self.bus.ensure_task_consumer(self.model)
        async with Pull(self.bus, STREAM_TASKS, consumer) as pull:
            self.receipt_subject = self.bus.new_inbox()
            await self.bus.subscribe(self.receipt_subject, cb=self.on_receipts)
            while True:
                await pull.want(self.slots)
                message = await pull.next(1.0)
                if message is None:
                    continue
                ticket = ticket_pb2.Ticket.FromString(message.data)
                self.offered.append(ticket)
                if self.swallows:
                    continue
                await self.offer(ticket)
                await message.ack_sync(60.0)

    async def on_receipts(self, message: Any) -> None:
        self.receipts += ticket_pb2.Receipts.FromString(message.data).receipts

    async def offer(self, ticket: ticket_pb2.Ticket, *, ended: bool = False) -> None:
        offer = ticket_pb2.Offer(
            request_id=ticket.request_id,
            attempt=ticket.attempt,
            worker_id=self.worker_id,
            address=self.address,
            receipt_subject=self.receipt_subject,
            ended=ended,
        )
        inbox = self.bus.new_inbox()

        async def refused(message: Any) -> None:
            self.refused.append(f"{ticket.request_id}.{ticket.attempt}")

        await self.bus.subscribe(inbox, cb=refused)
        await self.bus.publish_core(ticket.reply_subject, offer.SerializeToString(), reply=inbox)
