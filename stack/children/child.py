"""A child process of the stack: started, watched, started again when it crashes, and ended."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from stack.children.processes import Process
from stack.errors import StackError

logger = logging.getLogger(__name__)

_HEALTHY_AFTER_SECONDS = 30.0  # a run of this length forgives the crashes before it
_BACKOFF_FIRST_SECONDS = 0.2
_BACKOFF_MAX_SECONDS = 10.0
_DOUBLINGS_MAX = 16

# Starts it, hands over the process at once, and returns when it serves; raises StackError with nothing left running.
Launch = Callable[[Callable[[Process], None]], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a child that runs, and whether it may go away by a restart."""

    why: str
    curable: bool = True


# Asks once, within the caller's deadline: None where it does its work.
Probe = Callable[[], Awaitable[Finding | None]]


class ChildStatus(Enum):
    """The state of a child."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    FAILING = "failing"
    STOPPED = "stopped"


def backoff_seconds(failures: int) -> float:
    """How long to wait before the next start: not at all after the first crash, then doubling."""
    if failures <= 1:
        return 0.0
    return min(_BACKOFF_FIRST_SECONDS * (1 << min(failures - 2, _DOUBLINGS_MAX)), _BACKOFF_MAX_SECONDS)


class Child:
    """A child by name. `keep` runs for its whole life; `stop` ends it."""

    def __init__(
        self,
        name: str,
        launch: Launch,
        on_change: Callable[[], None],
        *,
        address: str = "",
        services: Sequence[str] = (),
        metrics_address: str = "",
        must_start: bool = True,
        probe: Probe | None = None,
    ) -> None:
        self.name = name
        self.address = address
        self.metrics_address = metrics_address  # host:port of GET /metrics; empty where there is none
        self.services = services  # that share the process; empty where it is one thing
        self.probe = probe  # None: it sends heartbeats
        self.status = ChildStatus.WAITING
        self.message = ""
        self.unhealthy = ""  # why it does not do its work though it runs, by the watchdog
        self.note = ""  # what else is to be known of it while it serves
        self.last_end = ""  # why its process before this one ended
        self.restarts = 0
        self.process: Process | None = None
        self.ready = asyncio.Event()  # set from its first readiness on
        self._launch, self._on_change, self._must_start = launch, on_change, must_start
        self._stopping = asyncio.Event()
        self._killed_for = ""

    @property
    def serving(self) -> bool:
        """Whether it serves now."""
        return self.status is ChildStatus.READY

    @property
    def stopping(self) -> bool:
        """Whether it was told to end."""
        return self._stopping.is_set()

    @property
    def failing(self) -> bool:
        """Whether its last start or run ended badly and it does not serve again yet."""
        return self.status is ChildStatus.FAILING or (self.status is ChildStatus.STARTING and bool(self.message))

    async def keep(self) -> None:
        """Keeps it running until it is stopped. Where it must start, the first failure to do so is raised."""
        failures = 0
        while not self._stopping.is_set():
            self._set(ChildStatus.STARTING, self.message)
            since = time.monotonic()
            try:
                await self._launch(self._on_spawn)
            except Exception as error:  # a task boundary: whatever hinders its start is tried again
                if self._stopping.is_set():
                    break
                if not isinstance(error, (StackError, OSError)):
                    logger.exception("child cannot be started", extra={"child": self.name})
                self._set(ChildStatus.FAILING, str(error) or repr(error))
                if self._must_start and not self.ready.is_set():
                    raise
            else:
                self._set(ChildStatus.READY, "")
                self.ready.set()
                await self._until_ended()
            failures = 1 if time.monotonic() - since > _HEALTHY_AFTER_SECONDS else failures + 1
            await self._pause(backoff_seconds(failures))
        self._set(ChildStatus.STOPPED, self.message)

    async def _until_ended(self) -> None:
        assert self.process is not None
        await self.process.wait()
        why, self._killed_for = self._killed_for, ""
        if not self._stopping.is_set():
            self.last_end = f"killed: {why}" if why else f"ended by {self.process.why_it_ended()}"
            self._set(ChildStatus.FAILING, self.last_end)

    async def _pause(self, seconds: float) -> None:
        if not self._stopping.is_set():
            self.restarts += 1
            # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()

    def found(self, unhealthy: str, note: str = "") -> None:
        """What the watchdog says of it now."""
        if (unhealthy, note) == (self.unhealthy, self.note):
            return
        if bool(unhealthy) != bool(self.unhealthy):
            level = logging.ERROR if unhealthy else logging.INFO
            logger.log(level, "health", extra={"child": self.name, "unhealthy": unhealthy})
        self.unhealthy, self.note = unhealthy, note
        self._on_change()

    def kill(self, why: str) -> None:
        """Ends a process that hangs; it is started again as after any other end. (SIGKILL ends a stopped one too.)"""
        if self.process is not None:
            logger.error("child hangs, it is killed", extra={"child": self.name, "pid": self.process.pid, "why": why})
            self._killed_for = why
            self.process.signal(signal.SIGKILL)

    async def stop(self, grace_seconds: float) -> None:
        """Ends it for good; what it is doing may finish within the grace."""
        self._stopping.set()
        if self.process is not None:
            await self.process.stop(grace_seconds)
        self._set(ChildStatus.STOPPED, self.message)

    def end_now(self) -> None:
        """Ends it without grace, in the way that leaves none of its own children."""
        self._stopping.set()
        if self.process is not None:
            self.process.signal(self.process.program.death_signal)

    def report(self) -> dict[str, Any]:
        """Its entry in the run file."""
        alive = self.process is not None and self.process.returncode is None
        return {
            "name": self.name,
            "services": list(self.services),
            "status": "unhealthy" if self.unhealthy else self.status.value,
            "pid": self.process.pid if self.process is not None and alive else None,
            "address": self.address,
            "metrics_address": self.metrics_address,
            "restarts": self.restarts,
            "last_end": self.last_end,
            "started_at": self.process.started_at if self.process is not None and alive else None,
            "message": self.unhealthy or self.message or self.note,
        }

    def _on_spawn(self, process: Process) -> None:
        self.process = process
        if self._stopping.is_set():
            process.kill()
        self._on_change()

    def _set(self, status: ChildStatus, message: str) -> None:
        self.status, self.message, self.unhealthy, self.note = status, message, "", ""
        level = logging.WARNING if status is ChildStatus.FAILING else logging.INFO
        pid = self.process.pid if self.process else None
        logger.log(level, "child", extra={"child": self.name, "status": status.value, "pid": pid, "why": message})
        self._on_change()
