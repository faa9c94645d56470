"""A fake router: the router's side of a worker's protocol, for a real worker; and that worker as a task."""

import asyncio
import itertools
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import nats.errors
from nats.aio.msg import Msg
from nats.js.api import ConsumerInfo
from uplion.billing.v1.usage_event_pb2 import UsageEvent
from uplion.dispatch.v1.run_pb2 import ChatInput, RunEvent, RunRequest
from uplion.dispatch.v1.ticket_pb2 import Caller, Offer, Ticket
from uplion.dispatch.v1.worker_service_pb2_grpc import WorkerServiceStub
from uplion.dispatch.v1.worker_state_pb2 import WorkerState

from common import manifest, names
from messaging.bus import Bus, connect_bus
from tests.kit.until import until

WAIT_SECONDS = 60.0
_NARROW = [("grpc.http2.bdp_probe", 0)]  # a reader that is slow holds 64 KiB, not megabytes


@dataclass
class FakeRouter:
    """Publishes tickets, collects offers, opens runs, and reads the usage events of one model."""

    bus: Bus
    model: str
    subject: str
    offers: dict[str, asyncio.Future[tuple[Offer, Msg]]] = field(default_factory=dict)
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    numbers: itertools.count = field(default_factory=itertools.count)

    def ticket(self, request_id: str = "", attempt: int = 1, *, seconds: float = 120.0, model: str = "") -> Ticket:
        ticket = Ticket(
            request_id=request_id or uuid.uuid4().hex,
            attempt=attempt,
            caller=Caller(account="acme", key="k1", reservation="r1", tier="default"),
            model=model or self.model,
            lane=names.LANE_DEFAULT,
            reply_subject=self.subject,
            proof=os.urandom(16),
        )
        ticket.publish_time.FromNanoseconds(time.time_ns())
        ticket.deadline.FromNanoseconds(time.time_ns() + int(seconds * 1e9))
        return ticket

    async def publish(self, ticket: Ticket) -> None:
        await self.bus.publish(
            names.task_subject(self.model),
            ticket.SerializeToString(),
            message_id=names.attempt_id(ticket.request_id, ticket.attempt),
        )

    async def offer(self, ticket: Ticket) -> tuple[Offer, Msg]:
        """Publishes a ticket and waits for the first offer."""
        future = self.offers[ticket.request_id] = asyncio.get_running_loop().create_future()
        await self.publish(ticket)
        async with asyncio.timeout(WAIT_SECONDS):
            return await future

    async def on_offer(self, message: Msg) -> None:
        offer = Offer.FromString(message.data)
        future = self.offers.get(offer.request_id)
        if future is not None and not future.done():
            future.set_result((offer, message))

    def stub(self, offer: Offer) -> WorkerServiceStub:
        channel = self.channels.get(offer.address)
        if channel is None:
            channel = self.channels[offer.address] = grpc.aio.insecure_channel(offer.address, _NARROW)
        return WorkerServiceStub(channel)

    async def open(self, request: RunRequest) -> Any:
        """The call, once an offer came."""
        offer, _ = await self.offer(request.ticket)
        ticket = request.ticket
        seconds = (ticket.deadline.ToNanoseconds() - ticket.publish_time.ToNanoseconds()) / 1e9
        return self.stub(offer).Run(request, timeout=seconds)

    async def run(self, request: RunRequest) -> list[RunEvent]:
        """All events of a run that goes well."""
        call = await self.open(request)
        return [event async for event in call]

    def chat(self, text: str = "Hello", ticket: Ticket | None = None, **sampling: Any) -> RunRequest:
        request = RunRequest(
            ticket=ticket or self.ticket(),
            chat=ChatInput(messages_json=json.dumps([{"role": "user", "content": text}]).encode()),
        )
        for name, value in sampling.items():
            if name == "stop":
                request.sampling.stop.extend(value)
            else:
                setattr(request.sampling, name, value)
        return request

    async def usage(self, request_id: str, attempt: int = 1) -> UsageEvent:
        """The event of an attempt, as the stream holds it."""
        return (await self.usages([(request_id, attempt)]))[0]

    async def usages(self, keys: list[tuple[str, int]]) -> list[UsageEvent]:
        found: dict[tuple[str, int], UsageEvent] = {}
        subscription = await self.bus.js.subscribe(names.usage_subject(self.model), ordered_consumer=True)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not all(key in found for key in keys):
                    event = UsageEvent.FromString((await subscription.next_msg(WAIT_SECONDS)).data)
                    key = event.request_id, event.attempt
                    assert key not in found, f"two events of {key}"
                    found[key] = event
        finally:
            await subscription.unsubscribe()
        return [found[key] for key in keys]

    async def unsettled(self) -> int:
        """Tickets that the broker still holds for this model."""
        subject = names.task_subject(self.model)
        held = (await self.bus.js.stream_info(names.STREAM_TASKS, subjects_filter=subject)).state.subjects or {}
        return sum(held.values())

    async def deliveries(self) -> int:
        """How often the broker has delivered a ticket of this model to a worker."""
        delivered = (await self._consumer()).delivered
        return delivered.consumer_seq if delivered else 0

    async def left_alone(self, since: int) -> None:
        """Waits until the worker has not taken a ticket that was published after so many deliveries.

        Either it asks the broker for none, or it got the ticket and gave it back: then it was delivered again.
        """

        async def left() -> bool:
            consumer = await self._consumer()
            delivered = consumer.delivered.consumer_seq if consumer.delivered else 0
            return delivered >= since + 2 or bool(consumer.num_pending and not consumer.num_waiting)

        await until(left, WAIT_SECONDS, ignoring=(nats.errors.Error, TimeoutError))

    async def _consumer(self) -> ConsumerInfo:
        return await self.bus.js.consumer_info(names.STREAM_TASKS, names.task_consumer(self.model))

    async def settled(self) -> None:
        """Waits until every ticket is acknowledged."""

        async def all_settled() -> bool:
            return not await self.unsettled()

        await until(all_settled, WAIT_SECONDS, ignoring=(nats.errors.Error, TimeoutError))

    async def worker(self) -> WorkerState | None:
        """What the model's worker says of itself; None when there is none, or nobody answers in time."""
        with suppress(nats.errors.Error, TimeoutError):
            for entry in await self.bus.snapshot(names.KV_WORKERS):
                state = WorkerState.FromString(entry.value or b"")
                if state.model == self.model:
                    return state
        return None


@dataclass
class Worker:
    """`app.main` as a task."""

    router: FakeRouter
    stop: asyncio.Event
    task: asyncio.Task[None]

    async def ended(self) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            await self.task


StartWorker = Callable[..., Awaitable[Worker]]


def manifest_file(folder: Path, model: str, **spec: Any) -> Path:
    path = folder / f"{model}.yaml"
    document = {
        "apiVersion": manifest.API_VERSION,
        "kind": "AIModel",
        "metadata": {"name": model},
        "spec": {"type": "local", "model": "none", "engine": "synthetic", **spec},
    }
    path.write_text(json.dumps(document))  # JSON is YAML
    return path


@asynccontextmanager
async def fake_router(nats_url: str, model: str) -> AsyncIterator[FakeRouter]:
    async with connect_bus(nats_url, "test") as bus:
        await bus.ensure_streams()
        router = FakeRouter(bus, model, bus.new_inbox())
        await bus.subscribe(router.subject, cb=router.on_offer)
        yield router
        for channel in router.channels.values():
            await channel.close()
