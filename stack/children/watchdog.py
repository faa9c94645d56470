"""The watchdog: finds children that run and make no progress, and kills them, so that they are started again.

Our own processes send heartbeats from their event loops; servers and the proxy are asked. Who gives no sign of life for
three deadlines is unhealthy. Being slow is no reason: a process that computes meanwhile is busy, and gets two minutes.
One child is killed at a time, and all others get their deadlines anew once it serves again, since one cause may hinder
several. So they do when this process itself did not run: then the machine stood still, and nobody is to blame.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.lifecycle import forever
from stack.children.child import Child, Finding
from stack.children.processes import Process

_DEADLINE_SECONDS = 5.0
SILENCE_SECONDS = 3 * _DEADLINE_SECONDS
_BUSY_SECONDS = 120.0  # an event loop that turned no more within this time will not, however much is computed
_BUSY_SHARE = 0.02  # of one core: less is no work but timers
_TICK_SECONDS = 1.0
_LATE_SECONDS = 2.0  # a tick that comes so late says that the machine stood still
_TROUBLED_SECONDS = 60.0  # tasks that fail for so long, again and again, make their process unhealthy
_RESTART_SECONDS = 60.0  # for one child, before others may be killed
_STOPPED = "stopped by a signal: no sign of life"
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class _Watch:
    """What is known of one process; times are time.monotonic's."""

    process: Process
    alive_at: float
    finding: Finding | None = None  # of the last probe
    cpu: tuple[float, float] | None = None  # when it was found silent first, and the seconds it had computed then
    troubled_at: float | None = None  # since when its tasks fail


class Watchdog:
    """Watches the children that `children` returns; `run` is its one task."""

    def __init__(
        self, fixed: Sequence[Child], children: Callable[[], Iterable[Child]], beat: Callable[[], None]
    ) -> None:
        """`fixed` are those that are there from start to end; `beat` is called every few seconds, as a sign of life."""
        self._fixed, self._children, self._beat = fixed, children, beat
        self._watches: dict[str, _Watch] = {}
        self._restarting: tuple[Child, float] | None = None  # since when

    async def run(self) -> None:
        """Watches until it is cancelled."""
        probes = {f"probe {child.name}": partial(self._probe, child) for child in self._fixed if child.probe}
        async with forever(probes):
            beaten_at = last = time.monotonic()
            wall = time.time()
            while True:
                await asyncio.sleep(_TICK_SECONDS)
                now, wall_now = time.monotonic(), time.time()
                if max(now - last, abs(wall_now - wall)) > _TICK_SECONDS + _LATE_SECONDS:
                    self._begin_anew(now)
                last, wall = now, wall_now
                if now - beaten_at >= _DEADLINE_SECONDS:
                    beaten_at = now
                    self._beat()
                self._tick(now)

    def _tick(self, now: float) -> None:
        if self._restarting is not None:
            child, since = self._restarting
            if child.serving or now - since > _RESTART_SECONDS:
                self._restarting = None
                self._begin_anew(now)
        children = list(self._children())
        for name in self._watches.keys() - {child.name for child in children}:
            del self._watches[name]
        for child in children:
            self._look(child, now)

    def _begin_anew(self, now: float) -> None:
        for watch in self._watches.values():
            watch.alive_at, watch.cpu, watch.troubled_at = now, None, None

    def _look(self, child: Child, now: float) -> None:
        process = child.process
        if not child.serving or child.stopping or process is None or process.returncode is not None:
            self._watches.pop(child.name, None)
            return
        watch = self._watches.get(child.name)
        if watch is None or watch.process is not process:
            watch = self._watches[child.name] = _Watch(process, now)
        if child.probe is None:
            watch.alive_at = max(watch.alive_at, process.heard_at)
        silent_seconds = now - watch.alive_at
        if silent_seconds <= _DEADLINE_SECONDS:
            watch.cpu = None
        elif watch.cpu is None:
            watch.cpu = (now, _cpu_seconds(process.pid))
        stopped = silent_seconds > _DEADLINE_SECONDS and _is_stopped(process.pid)
        if silent_seconds <= SILENCE_SECONDS:
            child.found(_STOPPED if stopped else self._troubled(watch, now), _in_words(process))
        elif silent_seconds <= _BUSY_SECONDS and watch.finding is None and _is_busy(watch, now):
            child.found("", f"busy: no sign of life for {silent_seconds:.0f} s")
        else:
            self._is_hung(child, watch, silent_seconds, now)

    def _is_hung(self, child: Child, watch: _Watch, silent_seconds: float, now: float) -> None:
        finding = watch.finding or Finding(f"no sign of life for {silent_seconds:.0f} s")
        if _is_stopped(watch.process.pid):
            finding = Finding(_STOPPED)
        child.found(finding.why)
        if finding.curable and self._restarting is None:
            self._restarting = (child, now)
            child.kill(finding.why)

    def _troubled(self, watch: _Watch, now: float) -> str:
        """Why a process that lives is not well: a task of it fails for a minute now."""
        if not watch.process.troubles:
            watch.troubled_at = None
            return ""
        if watch.troubled_at is None:
            watch.troubled_at = now
        return _in_words(watch.process) if now - watch.troubled_at > _TROUBLED_SECONDS else ""

    async def _probe(self, child: Child) -> None:
        """Asks a child all the while. Deadlines are counted from its last good answer."""
        assert child.probe is not None
        while True:
            process, began = child.process, time.monotonic()
            finding: Finding | None = None
            try:
                async with asyncio.timeout(_DEADLINE_SECONDS):
                    finding = await child.probe()
                answered = finding is None
            except TimeoutError:
                answered = False
            watch = self._watches.get(child.name)
            if watch is not None and watch.process is process:
                watch.finding = finding
                if answered:
                    watch.alive_at = max(watch.alive_at, began)
            await asyncio.sleep(max(0.0, began + _DEADLINE_SECONDS - time.monotonic()))


def _in_words(process: Process) -> str:
    return "; ".join(f"{name} fails: {why}" for name, why in process.troubles.items())


def _is_busy(watch: _Watch, now: float) -> bool:
    """Whether it computed since it fell silent."""
    if watch.cpu is None or _is_stopped(watch.process.pid):
        return False
    since, cpu_seconds = watch.cpu
    return _cpu_seconds(watch.process.pid) - cpu_seconds >= _BUSY_SHARE * (now - since)


def _is_stopped(pid: int) -> bool:
    """Whether a signal stopped it (SIGSTOP), or a debugger."""
    fields = _stat(pid)
    return bool(fields) and fields[0] in ("T", "t")


def _cpu_seconds(pid: int) -> float:
    """What it has computed so far, and its children."""
    fields = _stat(pid)
    own = (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND if fields else 0.0
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return own
    return own + sum(_cpu_seconds(int(child)) for child in children)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
