"""How a part is kept, with a process that only pretends."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any, cast

import pytest

from stack import parts
from stack.errors import StackError
from stack.parts import Part, PartStatus, backoff_seconds
from stack.processes import Process


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
    part = Part("p", launch, lambda: None)
    keeping = asyncio.create_task(part.keep())
    await part.ready.wait()
    launch.processes[0].ends(1)
    while len(launch.processes) < 2 or not part.serving:
        await asyncio.sleep(0)
    assert part.restarts == 1
    assert part.message == ""
    await part.stop(1.0)
    await asyncio.wait_for(keeping, 60)
    assert part.status is PartStatus.STOPPED
    assert part.report()["pid"] is None


async def test_the_first_start_must_succeed() -> None:
    part = Part("p", PretendLaunch(failures=1), lambda: None)
    with pytest.raises(StackError, match="does not start"):
        await part.keep()
    assert part.failing


async def test_a_worker_may_fail_at_first() -> None:
    launch = PretendLaunch(failures=2)
    part = Part("p", launch, lambda: None, must_start=False)
    keeping = asyncio.create_task(part.keep())
    await asyncio.wait_for(part.ready.wait(), 60)
    assert len(launch.processes) == 3
    await part.stop(1.0)
    await keeping


async def test_a_part_stopped_while_it_waits_to_start_again_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "backoff_seconds", lambda failures: 600.0)
    part = Part("p", PretendLaunch(failures=1000), lambda: None, must_start=False)
    keeping = asyncio.create_task(part.keep())
    while not part.restarts:
        await asyncio.sleep(0.01)
    await part.stop(1.0)
    await asyncio.wait_for(keeping, 60)


def test_the_wait_before_a_start_doubles_up_to_a_bound() -> None:
    waits = [backoff_seconds(failures) for failures in range(1, 12)]
    assert waits[0] == 0
    assert waits[1:4] == [0.2, 0.4, 0.8]
    assert waits[-1] == max(waits) == 10
    assert backoff_seconds(10_000) == 10
