"""A real router, a real NATS, and a scripted worker that speaks the real worker protocol."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import grpc.aio
import nats.errors
import pytest
from google.api.httpbody_pb2 import HttpBody
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.dispatch.v1 import run_pb2, ticket_pb2, worker_service_pb2_grpc, worker_state_pb2
from uplion.inference.v1 import sampling_pb2

from common.identity import Identity
from common.names import HEADER_REQUEST_ID, KV_MODELS, KV_WORKERS, STREAM_TASKS, token
from messaging.bus import Bus, connect_bus
from messaging.pull import Pull
from router.app import main
from router.settings import RouterSettings

Script = Callable[[run_pb2.RunRequest, Any], AsyncIterator[run_pb2.RunEvent]]
_STEP_SECONDS = 60.0
ALL = (1, 2, 3, 4)


def word(index: int, text: str, *ids: int, finish: int = 0) -> run_pb2.Delta:
    return run_pb2.Delta(index=index, text=text, token_ids=ids, finish_reason=finish)  # type: ignore[arg-type]


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
class SeamWorker(worker_service_pb2_grpc.WorkerServiceServicer):
    """Pulls tickets, offers, runs a script. Says what it saw."""

    bus: Bus
    model: str
    script: Script = hello
    slots: int = 64
    mute: bool = False  # tells the meter nothing, as one that dies before it did
    capabilities: tuple[int, ...] = ALL
    worker_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    address: str = ""
    offered: list[ticket_pb2.Ticket] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    runs: list[run_pb2.RunRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    server: Any = None
    task: Any = None
    wire: Any = None

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
        await self.bus.nc.publish(f"usage.{token(self.model)}", event.SerializeToString())

    async def kill(self) -> None:
        """Ends it as kill -9 does: no more pulls, every stream broken."""
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.bus.nc.close()
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
            while True:
                await pull.want(self.slots)
                message = await pull.next(1.0)
                if message is None:
                    continue
                ticket = ticket_pb2.Ticket.FromString(message.data)
                self.offered.append(ticket)
                await self.offer(ticket)
                await message.ack_sync(60.0)

    async def offer(self, ticket: ticket_pb2.Ticket) -> None:
        offer = ticket_pb2.Offer(
            request_id=ticket.request_id, attempt=ticket.attempt, worker_id=self.worker_id, address=self.address
        )
        inbox = self.bus.nc.new_inbox()

        async def refused(message: Any) -> None:
            self.refused.append(f"{ticket.request_id}.{ticket.attempt}")

        await self.bus.nc.subscribe(inbox, cb=refused)
        await self.bus.nc.publish(ticket.reply_subject, offer.SerializeToString(), reply=inbox)


class Wire:
    """A TCP hop that can go dead without closing, as the host of a stopped process does."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._writers: list[asyncio.StreamWriter] = []
        self.flows = asyncio.Event()
        self.flows.set()

    async def __aenter__(self) -> "Wire":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        self._writers += [writer, far_writer]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._copy(reader, far_writer))
            tasks.create_task(self._copy(far_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self.flows.wait()
                writer.write(data)
        writer.close()


@dataclass
class Client:
    """Calls the router as Envoy does."""

    channel: grpc.aio.Channel
    identity: Identity

    def metadata(self, **changes: Any) -> tuple[tuple[str, str], ...]:
        identity = replace(self.identity, **{"request_id": str(uuid.uuid4()), **changes})
        headers = [(name, value) for name, value in identity.to_headers() if value]
        return (*headers, (HEADER_REQUEST_ID, identity.request_id))

    def open(self, method: str, body: bytes, **changes: Any) -> Any:
        call = self.channel.unary_stream(f"/uplion.openai.v1.OpenAIService/{method}")
        data = (
            body if method == "GetModel" else HttpBody(content_type="application/json", data=body).SerializeToString()
        )
        return call(data, timeout=120, metadata=self.metadata(**changes))

    async def post(self, method: str, body: bytes, **changes: Any) -> tuple[int, dict[str, str], bytes, str]:
        """HTTP status, headers, body, content type."""
        call = self.open(method, body, **changes)
        messages = [HttpBody.FromString(message) async for message in call]
        headers = {name: str(value) for name, value in await call.initial_metadata()}
        data = b"".join(message.data for message in messages)
        return int(headers.get("x-uplion-status", "200")), headers, data, messages[0].content_type


@dataclass
class World:
    """What a test plays with."""

    bus: Bus
    model: str
    client: Client
    usage: list[billing.UsageEvent]
    stop: asyncio.Event
    router: "asyncio.Task[None]"
    start_worker: Callable[..., Awaitable[SeamWorker]]

    async def until(self, condition: Callable[[], object], seconds: float = _STEP_SECONDS) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_queued(self) -> None:
        """Waits until a ticket of this model is in its stream."""
        async with asyncio.timeout(_STEP_SECONDS):
            while True:
                with suppress(nats.errors.Error, TimeoutError):  # the next try may do
                    if (await self.bus.js.stream_info(STREAM_TASKS, subjects_filter=self.tickets)).state.subjects:
                        return
                await asyncio.sleep(0.01)

    @property
    def tickets(self) -> str:
        return f"tasks.{token(self.model)}.>"

    async def one_usage(self) -> billing.UsageEvent:
        await self.until(lambda: self.usage)
        await asyncio.sleep(0.02)
        assert len({(event.request_id, event.attempt) for event in self.usage}) == len(self.usage)
        return self.usage[-1]


class _Ready(logging.Handler):
    """Hears the one line that says where the router listens."""

    def __init__(self) -> None:
        super().__init__()
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "ready" and getattr(record, "service", "") == "router" and not self.address.done():
            self.address.set_result(str(vars(record)["address"]))


MANIFEST = (
    b'{"apiVersion":"model.youxam.com/v1alpha1","kind":"AIModel","metadata":{"name":"%s"},'
    b'"spec":{"type":"local","model":"x","engine":"synthetic"}}'
)


@asynccontextmanager
async def _running_router(settings: RouterSettings) -> AsyncIterator[tuple[str, asyncio.Event, "asyncio.Task[None]"]]:
    ready, stop = _Ready(), asyncio.Event()
    lifecycle = logging.getLogger("common.lifecycle")
    lifecycle.addHandler(ready)
    lifecycle.setLevel(logging.INFO)
    task = asyncio.create_task(main(settings, stop))
    try:
        waiting: set[asyncio.Future[Any]] = {task, ready.address}
        await asyncio.wait(waiting, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        yield ready.address.result(), stop, task
        stop.set()
        async with asyncio.timeout(60):
            await task
    finally:
        lifecycle.removeHandler(ready)
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
def start_world(nats_url: str) -> Callable[..., Any]:
    """`async with start_world(**settings) as world`."""

    @asynccontextmanager
    async def start(
        *, url: str = nats_url, worker: bool = True, known: bool = True, **changes: Any
    ) -> AsyncIterator[World]:
        model = f"m-{uuid.uuid4().hex[:10]}"
        settings = RouterSettings(
            nats_url=url, drain_seconds=0.0, grace_seconds=10.0, **{"publish_seconds": 30.0, **changes}
        )
        usage: list[billing.UsageEvent] = []
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(connect_bus(url, "test"))
            await bus.ensure_streams()
            if known:
                await (await bus.js.key_value(KV_MODELS)).put(token(model), MANIFEST % model.encode())

            async def on_usage(message: Any) -> None:
                usage.append(billing.UsageEvent.FromString(message.data))

            await bus.nc.subscribe(f"usage.{token(model)}", cb=on_usage)
            await bus.nc.flush()
            tasks = await stack.enter_async_context(_Background())

            async def start_worker(*, wired: bool = False, **options: Any) -> SeamWorker:
                own = await stack.enter_async_context(connect_bus(url, "worker"))
                seam = SeamWorker(own, model, **options)
                seam.server = grpc.aio.server(options=[("grpc.http2.min_ping_interval_without_data_ms", 100)])
                worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(seam, seam.server)  # type: ignore[no-untyped-call]
                port = seam.server.add_insecure_port("127.0.0.1:0")
                seam.address = f"127.0.0.1:{port}"
                await seam.server.start()
                if wired:
                    seam.wire = await stack.enter_async_context(Wire(seam.address))
                    seam.address = seam.wire.address
                stack.push_async_callback(seam.server.stop, None)
                await seam.announce()
                seam.task = tasks.start(seam.take_tickets())
                return seam

            if worker:
                await start_worker()
            address, stop, router = await stack.enter_async_context(_running_router(settings))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            identity = Identity("acme", "key1", "res1", model, "default", 64, 120.0, "")
            yield World(bus, model, Client(channel, identity), usage, stop, router, start_worker)

    return start


class _Background:
    """Tasks that end with the test."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, work: Any) -> "asyncio.Task[None]":
        self._tasks.append(asyncio.create_task(work))
        return self._tasks[-1]

    async def __aenter__(self) -> "_Background":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def world(start_world: Callable[..., Any]) -> AsyncIterator[World]:
    """A router with one worker that answers at once."""
    async with start_world() as running:
        yield running
