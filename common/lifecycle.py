"""The life of a process and of its tasks: start, announce readiness, run until a signal, drain, exit."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from common import telemetry
from common.settings import setting

logger = logging.getLogger(__name__)

Ready = Callable[[str], None]  # called once, with the bound host:port, or an empty string where a service binds none
# A service's `main` but for its settings: runs until the event is set and then drains; calls `Ready` once it serves.
Service = Callable[[asyncio.Event, Ready], Awaitable[None]]

_EXIT_CRASHED = 1


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What belongs to a process, whatever services it holds."""

    PREFIX: ClassVar[str] = "PROCESS"
    log_level: str = setting("info", doc="least severe log lines written: debug, info, warning or error")
    metrics_listen: str = setting("", doc="host:port of GET /metrics; not set: no metrics are served")
    otlp_endpoint: str = setting(
        "",
        doc="URL of the OTLP gRPC collector that spans are sent to; not set: none are made",
        env="OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    notify_socket: str = setting(
        "",
        doc="path or @name of the sd_notify socket that readiness is announced on; not set: only logged",
        env="NOTIFY_SOCKET",
    )


def run(services: Mapping[str, Service], process: ProcessSettings) -> int:
    """Runs the services on one event loop until a signal or a failure; returns the exit code.

    The first SIGTERM or SIGINT lets them drain, the second exits at once. A service that fails, or returns before the
    signal, makes the others drain and the exit code 1.
    """
    import uvloop  # only a process of services needs it

    telemetry.configure_logging(process.log_level)
    if process.otlp_endpoint:
        telemetry.configure_tracing("-".join(services), process.otlp_endpoint)
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
        telemetry.serve_metrics(process.metrics_listen)
    # What was imported stays: keep it out of every later collection (a full one cost 30 ms of latency).
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 50)
    failed = False

    async def guard(name: str, service: Service) -> None:
        nonlocal failed
        try:
            await service(stop, partial(_announce_ready, process.notify_socket, name))
            if not stop.is_set():
                raise RuntimeError(f"{name} returned before it was stopped")
        except Exception:  # a task boundary: log which service failed, then let the others drain
            logger.exception("service failed", extra={"service": name})
            failed = True
            stop.set()

    async with asyncio.TaskGroup() as tasks:
        for name, service in services.items():
            tasks.create_task(guard(name, service), name=name)
    return _EXIT_CRASHED if failed else 0


def _announce_ready(notify_socket: str, name: str, address: str) -> None:
    """Announces one service by a log line, and by sd_notify's READY=1 where a supervisor set NOTIFY_SOCKET."""
    logger.info("ready", extra={"service": name, "address": address})
    if not notify_socket:
        return
    target = "\0" + notify_socket[1:] if notify_socket.startswith("@") else notify_socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            notify.sendto(f"READY=1\nSTATUS={name} {address}".encode(), target)
        except OSError as problem:
            logger.warning("readiness could not be announced", extra={"problem": str(problem)})


@asynccontextmanager
async def forever(tasks: Mapping[str, Callable[[], Awaitable[None]]]) -> AsyncIterator[None]:
    """Runs tasks, by name, that never return, for the length of the block; leaving it cancels and awaits them.

    One that fails, or returns, cancels the block and the others, and is raised in an exception group.
    """

    async def never_returning(name: str, work: Callable[[], Awaitable[None]]) -> None:
        await work()
        not_cancelled()
        raise RuntimeError(f"the task {name!r} returned before it was cancelled")

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(never_returning(name, work), name=name) for name, work in tasks.items()]
        try:
            yield
        finally:
            for task in running:
                task.cancel()


async def run_forever(tasks: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
    """The same until it is cancelled, for a part whose work is several such tasks."""
    async with forever(tasks):
        await asyncio.get_running_loop().create_future()


def not_cancelled() -> bool:
    """For the head of a loop that runs until it is cancelled: True, or CancelledError if a call swallowed that.

    asyncio.wait_for of Python 3.11 does when a cancellation meets the result it waits for (python/cpython#86296), and
    the clients of NATS and Redis use it: a loop that merely goes on would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return True


async def sleep_unless_cancelled(seconds: float) -> None:
    """The sleep of such a loop after work that may have swallowed the cancellation: raises instead if it did."""
    not_cancelled()
    await asyncio.sleep(seconds)
