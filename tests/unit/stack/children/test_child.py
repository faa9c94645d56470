"""How a child is kept, with a process that only pretends."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any, cast

import pytest

from stack.children import child as child_module
from stack.children.child import Child, ChildStatus, backoff_seconds
from stack.children.processes import Process
from stack.errors import StackError
from tests.kit.until import until


class PretendProcess:
    def __init__(self) -> None:
        self.pid, self.started_at, self.returncode = 1, 0.0, cast(int | None, None)
        self.signals: list[signal.Signals] = []
        self._ended = asyncio.Event()

    def ends(self, code: int) -> None:
        self.returncode = code
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    async def stop(self, grace_seconds: float) -> None:
        self.ends(0)

    def kill(self) -> None:
        self.ends(-9)

    def why_it_ended(self) -> str:
        return f"exit code {self.returncode}"


class PretendLaunch:
    """Fails as often as told, then succeeds."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.processes: list[PretendProcess] = []

    async def __call__(self, on_spawn: Callable[[Process], None]) -> None:
        process = PretendProcess()
        self.processes.append(process)
        on_spawn(cast(Any, process))
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            process.ends(1)
            raise StackError("it does not start")


async def test_a_crashed_part_is_started_again() -> None:
    launch = PretendLaunch()
    child = Child("p", launch, lambda: None)
    keeping = asyncio.create_task(child.keep())
    await child.ready.wait()
    launch.processes[0].ends(1)
    await until(lambda: len(launch.processes) >= 2 and child.serving)
    assert child.restarts == 1
    assert child.message == ""
    await child.stop(1.0)
    await asyncio.wait_for(keeping, 60)
    assert child.status is ChildStatus.STOPPED
    assert child.report()["pid"] is None


async def test_the_first_start_must_succeed() -> None:
    child = Child("p", PretendLaunch(failures=1), lambda: None)
    with pytest.raises(StackError, match="does not start"):
        await child.keep()
    assert child.failing


async def test_a_worker_may_fail_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "backoff_seconds", lambda failures: 0.0)
    launch = PretendLaunch(failures=2)
    child = Child("p", launch, lambda: None, must_start=False)
    keeping = asyncio.create_task(child.keep())
    await asyncio.wait_for(child.ready.wait(), 60)
    assert len(launch.processes) == 3
    await child.stop(1.0)
    await keeping


async def test_a_part_stopped_while_it_waits_to_start_again_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "backoff_seconds", lambda failures: 600.0)
    child = Child("p", PretendLaunch(failures=1000), lambda: None, must_start=False)
    keeping = asyncio.create_task(child.keep())
    await until(lambda: child.restarts)
    await child.stop(1.0)
    await asyncio.wait_for(keeping, 60)


def test_the_wait_before_a_start_doubles_up_to_a_bound() -> None:
    waits = [backoff_seconds(failures) for failures in range(1, 12)]
    assert waits[0] == 0
    assert waits[1:4] == [0.2, 0.4, 0.8]
    assert waits[-1] == max(waits) == 10
    assert backoff_seconds(10_000) == 10
