"""The life of a process and of its tasks: start, announce readiness, run until a signal, drain, exit."""

import asyncio
import gc
import json
import logging
import math
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from random import SystemRandom
from typing import TYPE_CHECKING, ClassVar, TypeVar

from common import telemetry
from common.settings import setting

if TYPE_CHECKING:
    from common.metrics import Counter

logger = logging.getLogger(__name__)

Ready = Callable[[str], None]  # called once, with the bound host:port, or an empty string where a service binds none
# A service's `main` but for its settings: runs until the event is set and then drains; calls `Ready` once it serves.
Service = Callable[[asyncio.Event, Ready], Awaitable[None]]

T = TypeVar("T")
_EXIT_CRASHED = 1
_FAILED_DRAIN_SECONDS = 10.0
_NOTIFY_SECONDS = 0.5
_STATE_CHARACTERS = 3000  # of a datagram to the supervisor
_TROUBLED_SECONDS = 30.0  # how long a failure is reported, and as often as it happens again
_random = SystemRandom()  # jitter
_failures: dict[str, tuple[float, str]] = {}  # what hinders this process: until when that is reported, and why


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
    watchdog_usec: int = setting(
        0,
        doc="microseconds of silence on that socket after which its owner takes the process for hung; 0: no heartbeats",
        env="WATCHDOG_USEC",
    )


def run(services: Mapping[str, Service], process: ProcessSettings) -> int:
    """Runs the services on one event loop until a signal; returns the exit code.

    The first SIGTERM or SIGINT lets them drain, the second exits at once. A service that fails, or returns before the
    signal, is started again alone while the others serve. The process ends with 1, and the others get 10 s, where that
    would hide what an operator must mend (it has never been ready: settings, ports, schema), and where the service has
    the process for itself: then a new process is the cleaner start.
    """
    import uvloop  # only a process of services needs it, and its metrics

    telemetry.configure_logging(process.log_level)
    if process.otlp_endpoint:
        telemetry.configure_tracing("-".join(services), process.otlp_endpoint)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(services, process))
    finally:
        telemetry.flush_tracing()


async def _serve(services: Mapping[str, Service], process: ProcessSettings) -> int:
    from common.metrics import SERVICE_RESTARTS

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
    limit = asyncio.timeout(None)  # for the others' drain, once a failure ends the process

    async def keep(name: str, service: Service) -> None:
        nonlocal failed
        backoff, announced = Backoff(), False

        def ready(address: str) -> None:
            nonlocal announced
            announced = True
            _announce_ready(process.notify_socket, name, address)

        while True:
            begun = loop.time()
            try:
                await service(stop, ready)
                not_cancelled()
                if stop.is_set():
                    return
                raise RuntimeError(f"{name} returned before it was stopped")
            except Exception as problem:  # a task boundary: the failure of a service does not end the others
                logger.exception("service failed", extra={"service": name})
                if stop.is_set() or not announced or len(services) == 1:
                    failed = True
                    stop.set()
                    limit.reschedule(loop.time() + _FAILED_DRAIN_SECONDS)
                    return
                _note_failure(SERVICE_RESTARTS, name, problem)
            with suppress(TimeoutError):
                async with asyncio.timeout(backoff.after(loop.time() - begun)):
                    await stop.wait()

    with suppress(TimeoutError):
        async with limit, forever({"heartbeat": partial(_beat, process)}), asyncio.TaskGroup() as tasks:
            for name, service in services.items():
                tasks.create_task(keep(name, service), name=name)
    return _EXIT_CRASHED if failed else 0


async def _beat(process: ProcessSettings) -> None:
    """Tells the supervisor that the event loop turns, three times in the time after which it would be taken for hung.

    X_UPLION_TROUBLES is `troubles()`, as JSON.
    """
    if not process.watchdog_usec:
        await asyncio.get_running_loop().create_future()
    while not_cancelled():
        state = "WATCHDOG=1"
        if found := troubles():
            state += f"\nX_UPLION_TROUBLES={json.dumps(found)[:_STATE_CHARACTERS]}"
        _notify(process.notify_socket, state)
        await asyncio.sleep(process.watchdog_usec / 3e6)


def troubles() -> dict[str, str]:
    """What hinders this process, and why: tasks and services that failed in the last half minute, and reports."""
    now = time.monotonic()
    for name in [name for name, (until, _) in _failures.items() if now > until]:
        del _failures[name]
    return {name: why for name, (_, why) in _failures.items()}


def report_trouble(name: str, why: str) -> None:
    """For what hinders the process's work and is no failed task; until it is reported again with no reason."""
    if why:
        _failures[name] = (math.inf, why)
    else:
        _failures.pop(name, None)


def _note_failure(restarts: "Counter", name: str, problem: Exception) -> None:
    restarts.labels(name).inc()
    while isinstance(problem, ExceptionGroup):
        problem = problem.exceptions[0]
    _failures[name] = (time.monotonic() + _TROUBLED_SECONDS, f"{type(problem).__name__}: {problem}"[:300])


def _announce_ready(notify_socket: str, name: str, address: str) -> None:
    """Announces one service by a log line, and by sd_notify's READY=1 where a supervisor set NOTIFY_SOCKET."""
    logger.info("ready", extra={"service": name, "address": address})
    _notify(notify_socket, f"READY=1\nSTATUS={name} {address}")


def _notify(notify_socket: str, state: str) -> None:
    if not notify_socket:
        return
    target = "\0" + notify_socket[1:] if notify_socket.startswith("@") else notify_socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            notify.settimeout(_NOTIFY_SECONDS)  # a supervisor that does not read must not stop who tells it something
            notify.sendto(state.encode(), target)
        except OSError as problem:
            logger.warning("the supervisor could not be told", extra={"problem": str(problem)})


class Backoff:
    """The pauses before restarts: doubling with jitter, bounded, and short again after a run that was healthy."""

    def __init__(self, first_seconds: float = 0.1, most_seconds: float = 10.0, healthy_seconds: float = 30.0) -> None:
        self._first_seconds, self._most_seconds, self._healthy_seconds = first_seconds, most_seconds, healthy_seconds
        self._next_seconds = first_seconds

    def after(self, ran_seconds: float) -> float:
        """How long to pause after a run of that length that ended in a failure."""
        if ran_seconds >= self._healthy_seconds:
            self._next_seconds = self._first_seconds
        pause_seconds, self._next_seconds = self._next_seconds, min(2 * self._next_seconds, self._most_seconds)
        return pause_seconds * _random.uniform(0.5, 1.0)


async def restarted(name: str, work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`; where it fails, it is started again, alone, with backoff. Logged, counted, in `troubles`.

    `work` makes whatever it needs (subscriptions, watches) itself, so that each start has its own.
    """
    backoff, now = Backoff(), asyncio.get_running_loop().time
    while True:
        begun = now()
        try:
            return await work()
        except Exception as problem:  # a task boundary: the failure of a task does not end its service
            from common.metrics import TASK_RESTARTS

            pause_seconds = backoff.after(now() - begun)
            logger.exception("task failed, it is started again", extra={"task": name, "pause_seconds": pause_seconds})
            _note_failure(TASK_RESTARTS, name, problem)
        await sleep_unless_cancelled(pause_seconds)


@asynccontextmanager
async def forever(tasks: Mapping[str, Callable[[], Awaitable[None]]]) -> AsyncIterator[None]:
    """Runs tasks, by name, that never return, for the length of the block; leaving it cancels and awaits them.

    One that fails, or returns, is started again as `restarted` does; the block and the others go on.
    """

    async def never_returning(name: str, work: Callable[[], Awaitable[None]]) -> None:
        await work()
        not_cancelled()
        raise RuntimeError(f"the task {name!r} returned before it was cancelled")

    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(restarted(name, partial(never_returning, name, work)), name=name)
            for name, work in tasks.items()
        ]
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
