"""A real router, a real NATS, and a scripted worker that speaks the real worker protocol."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc.aio
import nats.errors
import pytest
from google.api.httpbody_pb2 import HttpBody
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.dispatch.v1 import worker_service_pb2_grpc

from common.identity import Identity
from common.names import HEADER_REQUEST_ID, KV_MODELS, STREAM_TASKS, token
from messaging.bus import Bus, connect_bus
from router.app import main
from router.settings import RouterSettings
from tests.kit.proof import PROOF_KEYS, ProvenChannel
from tests.kit.scripted_worker import ScriptedWorker
from tests.kit.services import running
from tests.kit.tcp_proxy import TcpProxy
from tests.kit.until import until

_STEP_SECONDS = 60.0


@dataclass
class Client:
    """Calls the router as Envoy does."""

    channel: Any
    identity: Identity

    def metadata(self, **changes: Any) -> tuple[tuple[str, str], ...]:
        identity = replace(self.identity, **{"request_id": str(uuid.uuid4()), **changes})
        headers = [(name, value) for name, value in identity.to_headers() if value]
        return (*headers, (HEADER_REQUEST_ID, identity.request_id))

    def open(self, method: str, body: bytes, **changes: Any) -> Any:
        call: Any = self.channel.unary_stream(f"/uplion.openai.v1.OpenAIService/{method}")
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
    start_worker: Callable[..., Awaitable[ScriptedWorker]]

    async def until_queued(self) -> None:
        """Waits until a ticket of this model is in its stream."""

        async def queued() -> object:
            return (await self.bus.js.stream_info(STREAM_TASKS, subjects_filter=self.tickets)).state.subjects

        await until(queued, _STEP_SECONDS, ignoring=(nats.errors.Error, TimeoutError))

    @property
    def tickets(self) -> str:
        return f"tasks.{token(self.model)}.>"

    async def usage_published(self) -> None:
        """Waits for all events that the router has published so far: that of a request refused now comes after them."""
        request_id = str(uuid.uuid4())
        await self.client.post("CreateChatCompletion", b"{", request_id=request_id)
        await until(lambda: request_id in [event.request_id for event in self.usage])
        self.usage[:] = [event for event in self.usage if event.request_id != request_id]

    async def one_usage(self) -> billing.UsageEvent:
        await until(lambda: self.usage)
        await self.usage_published()
        assert len({(event.request_id, event.attempt) for event in self.usage}) == len(self.usage)
        return self.usage[-1]


MANIFEST = (
    b'{"apiVersion":"model.youxam.com/v1alpha1","kind":"AIModel","metadata":{"name":"%s"},'
    b'"spec":{"type":"local","model":"x","engine":"synthetic"}}'
)


@pytest.fixture
def start_world(nats_url: str) -> Callable[..., Any]:
    """`async with start_world(**settings) as world`."""

    @asynccontextmanager
    async def start(
        *, url: str = nats_url, worker: bool = True, known: bool = True, **changes: Any
    ) -> AsyncIterator[World]:
        model = f"m-{uuid.uuid4().hex[:10]}"
        settings = RouterSettings(
            nats_url=url,
            proof_keys=PROOF_KEYS,
            drain_seconds=0.0,
            grace_seconds=10.0,
            **{"publish_seconds": 30.0, **changes},
        )
        usage: list[billing.UsageEvent] = []
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(connect_bus(url, "test"))
            await bus.ensure_streams()
            if known:
                await (await bus.js.key_value(KV_MODELS)).put(token(model), MANIFEST % model.encode())

            async def on_usage(message: Any) -> None:
                usage.append(billing.UsageEvent.FromString(message.data))

            await bus.subscribe(f"usage.{token(model)}", cb=on_usage)
            await bus.flush()
            tasks = await stack.enter_async_context(_Background())

            async def start_worker(
                *, proxied: bool = False, listen: str = "127.0.0.1:0", **options: Any
            ) -> ScriptedWorker:
                own = await stack.enter_async_context(connect_bus(url, "worker"))
                scripted = ScriptedWorker(own, model, **options)
                scripted.server = grpc.aio.server(options=[("grpc.http2.min_ping_interval_without_data_ms", 100)])
                worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(scripted, scripted.server)
                port = scripted.server.add_insecure_port(listen)
                scripted.address = listen if listen.startswith("unix:") else f"127.0.0.1:{port}"
                await scripted.server.start()
                if proxied:
                    scripted.proxy = await stack.enter_async_context(TcpProxy(scripted.address))
                    scripted.address = scripted.proxy.address
                stack.push_async_callback(scripted.server.stop, None)
                await scripted.announce()
                scripted.task = tasks.start(scripted.take_tickets())
                return scripted

            if worker:
                await start_worker()
            router = await stack.enter_async_context(running(main, settings))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(router.address))
            identity = Identity("acme", "key1", "res1", model, "default", 64, 120.0, "")
            yield World(
                bus, model, Client(ProvenChannel(channel), identity), usage, router.stop, router.task, start_worker
            )

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
