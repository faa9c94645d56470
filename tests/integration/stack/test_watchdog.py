"""What the watchdog does with real processes that stop, hang, compute or recover. Its deadlines are shortened here."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.lifecycle import forever
from stack.children import watchdog
from stack.children.child import Child, Finding, Probe
from stack.children.processes import Process, Program, spawn
from stack.children.readiness import Readiness, readiness
from stack.children.watchdog import Watchdog
from tests.kit.until import until

DEADLINE = 0.4
SILENCE = 3 * DEADLINE
PROGRAM = """
import asyncio, sys, time
from common.lifecycle import ProcessSettings, run
from common.settings import load
import os

async def service(stop, ready):
    ready("here")
    while not stop.is_set():
        await asyncio.sleep(0.05)
        if os.path.exists(sys.argv[1] + ".compute"):
            while os.path.exists(sys.argv[1] + ".compute"):
                sum(range(1000))
        if os.path.exists(sys.argv[1] + ".hang"):
            time.sleep(600)

sys.exit(run({"part": service}, load(ProcessSettings, os.environ)))
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_DEADLINE_SECONDS", DEADLINE)
    monkeypatch.setattr(watchdog, "SILENCE_SECONDS", SILENCE)
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.05)
    monkeypatch.setattr(watchdog, "_LATE_SECONDS", 1.0)


class _Stack:
    """Children of one kind, and the watchdog over them."""

    def __init__(self, folder: Path, listener: Readiness) -> None:
        self._folder, self._listener = folder, listener
        self.children: list[Child] = []
        self.beats = 0
        (folder / "program.py").write_text(PROGRAM)

    def child(self, name: str, probe: Probe | None = None) -> Child:
        program = Program(
            name=name,
            argv=[sys.executable, str(self._folder / "program.py"), str(self._folder / name)],
            log=self._folder / f"{name}.log",
            env={
                "PATH": os.environ["PATH"],
                "NOTIFY_SOCKET": self._listener.address,
                "WATCHDOG_USEC": str(int(SILENCE * 1e6)),
            },
        )

        async def launch(on_spawn: Callable[[Process], None]) -> None:
            process = spawn(program)
            on_spawn(process)
            await self._listener.wait(process, ["part"], 60)

        self.children.append(Child(name, launch, lambda: None, probe=probe))
        return self.children[-1]

    def does(self, name: str, what: str) -> Path:
        path = self._folder / f"{name}.{what}"
        path.touch()
        return path

    def beaten(self, times: int) -> bool:
        return self.beats >= times

    def beat(self) -> None:
        self.beats += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            keeping = [tasks.create_task(child.keep()) for child in self.children]
            for child in self.children:
                await until(child.ready)
            watching = Watchdog(self.children, lambda: self.children, self.beat)
            async with forever({"watchdog": watching.run}):
                yield
            for child in self.children:
                child.end_now()
            await asyncio.wait(keeping)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[_Stack]:
    with readiness(tmp_path / "notify") as listener:
        yield _Stack(tmp_path, listener)


def _pid(child: Child) -> int:
    assert child.process is not None
    return child.process.pid


async def test_a_stopped_process_is_unhealthy_says_why_and_is_started_again(stack: _Stack) -> None:
    child = stack.child("a")
    other = stack.child("b")
    async with stack.running():
        before, neighbour = _pid(child), _pid(other)
        said: list[str] = []
        child._on_change = lambda: said.append(f"{child.report()['status']}: {child.report()['message']}")
        os.kill(before, signal.SIGSTOP)
        await until(lambda: child.serving and _pid(child) != before)
        assert "unhealthy: stopped by a signal: no sign of life" in said
        assert "failing: killed: stopped by a signal: no sign of life" in said
        assert child.last_end == "killed: stopped by a signal: no sign of life"
        assert child.report()["status"] == "ready"
        assert (_pid(other), other.restarts) == (neighbour, 0)
        assert stack.beats > 0


async def test_a_process_whose_loop_does_not_turn_is_started_again(stack: _Stack) -> None:
    child = stack.child("a")
    async with stack.running():
        before = _pid(child)
        hang = stack.does("a", "hang")
        await until(lambda: _pid(child) != before)
        hang.unlink(missing_ok=True)
        await until(lambda: child.serving and not child.unhealthy)


async def test_a_busy_process_is_left_alone_for_long(stack: _Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_BUSY_SECONDS", 600.0)
    child = stack.child("a")
    async with stack.running():
        before = _pid(child)
        compute = stack.does("a", "compute")
        await until(lambda: child.note.startswith("busy: no sign of life for"))
        await until(partial(stack.beaten, stack.beats + 4))  # three more deadlines
        assert (_pid(child), child.unhealthy) == (before, "")
        compute.unlink()
        await until(lambda: child.note == "")


async def test_a_process_that_computes_and_never_comes_back_is_started_again(
    stack: _Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_BUSY_SECONDS", 2 * SILENCE)
    child = stack.child("a")
    async with stack.running():
        before = _pid(child)
        compute = stack.does("a", "compute")
        await until(lambda: _pid(child) != before)
        compute.unlink()
        await until(lambda: child.serving)


async def test_one_is_killed_at_a_time(stack: _Stack) -> None:
    """What stops two may be one cause: the second gets its deadlines anew once the first one serves."""
    first, second = stack.child("a"), stack.child("b")
    async with stack.running():
        pids = _pid(first), _pid(second)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        await until(lambda: (_pid(first), _pid(second)) != pids)
        killed, rest = (first, second) if _pid(first) != pids[0] else (second, first)
        os.kill(_pid(rest), signal.SIGCONT)
        await until(lambda: killed.serving)
        await until(partial(stack.beaten, stack.beats + 4))
        assert rest.restarts == 0


async def test_a_machine_that_stood_still_blames_nobody(stack: _Stack) -> None:
    child = stack.child("a")
    async with stack.running():
        before = _pid(child)
        os.kill(before, signal.SIGSTOP)  # a suspended machine stops all at once, and this process too
        time.sleep(2 * SILENCE)  # noqa: ASYNC251
        os.kill(before, signal.SIGCONT)
        await until(partial(stack.beaten, stack.beats + 4))
        assert (_pid(child), child.restarts) == (before, 0)


async def test_a_wall_clock_that_jumps_blames_nobody(stack: _Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = [0.0]
    clock = SimpleNamespace(monotonic=time.monotonic, time=lambda: time.time() + ahead[0])
    monkeypatch.setattr(watchdog, "time", clock)
    child = stack.child("a")
    async with stack.running():
        before = _pid(child)
        for seconds in (3600.0, -7200.0):
            ahead[0] += seconds
            beats = stack.beats
            await until(partial(stack.beaten, beats + 3))
        assert (_pid(child), child.restarts) == (before, 0)


async def test_what_a_restart_does_not_cure_is_said_and_left(stack: _Stack) -> None:
    found: list[Finding | None] = [None]

    async def probe() -> Finding | None:
        return found[0]

    child = stack.child("a", probe)
    async with stack.running():
        before = _pid(child)
        found[0] = Finding("the disk is full", curable=False)
        await until(lambda: child.report()["status"] == "unhealthy")
        assert child.report()["message"] == "the disk is full"
        await until(partial(stack.beaten, stack.beats + 4))
        assert _pid(child) == before
        found[0] = None
        await until(lambda: child.report()["status"] == "ready")
        found[0] = Finding("it cannot store messages", curable=True)
        await until(lambda: _pid(child) != before)
        found[0] = None
        await until(lambda: child.serving and not child.unhealthy)


async def test_a_server_that_does_not_answer_is_started_again(stack: _Stack) -> None:
    silent: list[int] = []

    async def probe() -> Finding | None:
        if child.process is not None and child.process.pid in silent:
            raise TimeoutError
        return None

    child = stack.child("a", probe)
    async with stack.running():
        silent.append(_pid(child))
        await until(lambda: _pid(child) not in silent)
        await until(lambda: child.serving and not child.unhealthy)
