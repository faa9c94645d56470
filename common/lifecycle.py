"""The life of a process: start, announce, serve, drain, end. Every `__main__` calls `run`."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar

import grpc
import grpc.aio
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from prometheus_client import start_http_server

from common import telemetry
from common.interceptors import MaskingInterceptor
from common.settings import setting

logger = logging.getLogger(__name__)

Service = Callable[[asyncio.Event], Awaitable[None]]
_notify_socket: ContextVar[str] = ContextVar("notify_socket", default="")
_EXIT_CRASHED = 1


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What belongs to a process, whatever services it holds."""

    PREFIX: ClassVar[str] = "PROCESS"
    log_level: str = setting("info", doc="debug, info, warning or error")
    metrics_listen: str = setting("", doc="host:port of GET /metrics; empty means none")
    otlp_endpoint: str = setting(
        "", doc="where spans go (OTLP over gRPC); empty: none", env="OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    notify_socket: str = setting("", doc="sd_notify socket of who waits for us", env="NOTIFY_SOCKET")


def run(services: Mapping[str, Service], process: ProcessSettings) -> int:
    """Runs the services on one event loop until a signal or a failure; returns the exit code.

    The first SIGTERM or SIGINT lets them drain, the second exits at once. A service that fails, or returns
    before it was told to, ends the process with 1.
    """
    telemetry.configure_logging(process.log_level)
    if process.otlp_endpoint:
        telemetry.configure_tracing("-".join(services), process.otlp_endpoint)
    _notify_socket.set(process.notify_socket)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(services, process))
    finally:
        telemetry.flush_tracing()


async def _serve(services: Mapping[str, Service], process: ProcessSettings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            sys.exit(_EXIT_CRASHED)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if process.metrics_listen:
        host, _, port = process.metrics_listen.rpartition(":")
        start_http_server(int(port), host)
    # What was imported lives for ever: keep it out of every later collection (a full one cost 30 ms of latency).
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 50)
    failed = False

    async def guard(name: str, service: Service) -> None:
        nonlocal failed
        try:
            await service(stop)
            if not stop.is_set():
                raise RuntimeError(f"{name} ended by itself")
        except Exception:  # a task boundary: say which service failed, then let the others drain
            logger.exception("service failed", extra={"service": name})
            failed = True
            stop.set()

    async with asyncio.TaskGroup() as tasks:
        for name, service in services.items():
            tasks.create_task(guard(name, service), name=name)
    return _EXIT_CRASHED if failed else 0


def announce_ready(name: str, address: str = "") -> None:
    """Says once that a service is ready: one log line, and sd_notify's READY=1 to whoever waits for it."""
    logger.info("ready", extra={"service": name, "address": address})
    path = _notify_socket.get()
    if path:
        target = "\0" + path[1:] if path.startswith("@") else path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            try:
                notify.sendto(f"READY=1\nSTATUS={name} {address}".encode(), target)
            except OSError as problem:
                logger.warning("nobody listens for readiness", extra={"problem": str(problem)})


@asynccontextmanager
async def grpc_server(
    name: str,
    listen: str,
    register: Callable[[grpc.aio.Server], None],
    *,
    drain_seconds: float = 0.0,
    grace_seconds: float = 30.0,
    options: Sequence[tuple[str, int]] = (),
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    announce: bool = True,
) -> AsyncIterator[str]:
    """Serves until the block is left; yields the bound `host:port` (so port 0 works).

    Starts NOT_SERVING and announces readiness once bound and entered (`announce=False`: the caller does). Leaving
    drains: NOT_SERVING, wait `drain_seconds` for balancers to notice, refuse new calls, let running ones finish within
    `grace_seconds`.
    """
    server = grpc.aio.server(
        interceptors=[*interceptors, MaskingInterceptor()],
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", 20_000),
            # What the edge lets through (32 kB) must not be refused here: grpc's own limits are 8 and 16 kB.
            ("grpc.max_metadata_size", 48 << 10),
            ("grpc.absolute_max_metadata_size", 64 << 10),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.keepalive_permit_without_calls", 1),
            *options,
        ],
    )
    register(server)
    serving = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(serving, server)
    await serving.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    host = listen.rpartition(":")[0]
    port = server.add_insecure_port(listen)
    await server.start()
    try:
        await serving.set("", health_pb2.HealthCheckResponse.SERVING)
        if announce:
            announce_ready(name, f"{host}:{port}")
        yield f"{host}:{port}"
    finally:
        await serving.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await asyncio.sleep(drain_seconds)
        await server.stop(grace_seconds)
