"""Liveness of workers: who is silent is lost, but not while its router could not hear."""

from typing import Any

import nats.errors
import pytest

from router.dispatch.liveness import Liveness

LOOKS = 3


class Bus:
    """What liveness needs of NATS."""

    reconnects = 0
    connected = True
    answers = True

    async def flush(self, seconds: float) -> None:
        if not self.answers:
            raise nats.errors.TimeoutError


class Run:
    """What ends with its worker."""

    lost = False

    def worker_lost(self) -> None:
        self.lost = True


@pytest.fixture
def bus() -> Any:
    return Bus()


@pytest.fixture
def liveness(bus: Any) -> Liveness:
    return Liveness(bus, LOOKS)


async def looks(liveness: Liveness, count: int) -> None:
    for _ in range(count):
        await liveness.look()


async def test_a_silent_worker_is_lost_with_all_its_runs_and_no_other(liveness: Liveness) -> None:
    runs, other = [Run(), Run()], Run()
    for run in runs:
        liveness.begin("silent", run)
    liveness.begin("busy", other)
    for _ in range(LOOKS):
        assert not any(run.lost for run in runs)
        liveness.heard("busy")
        await liveness.look()
    assert all(run.lost for run in runs)
    assert not other.lost


async def test_any_sign_of_life_counts(liveness: Liveness) -> None:
    run = Run()
    liveness.begin("w", run)
    for _ in range(4 * LOOKS):
        liveness.heard("w")
        await looks(liveness, LOOKS - 1)
    assert not run.lost


async def test_nobody_is_judged_while_nats_is_away_or_has_just_come_back(liveness: Liveness, bus: Any) -> None:
    run = Run()
    liveness.begin("w", run)
    bus.connected = False
    await looks(liveness, 3 * LOOKS)
    bus.connected, bus.reconnects = True, 1
    await looks(liveness, LOOKS)
    assert not run.lost
    await liveness.look()
    assert run.lost


async def test_nobody_is_judged_while_nats_does_not_answer(liveness: Liveness, bus: Any) -> None:
    run = Run()
    liveness.begin("w", run)
    bus.answers = False
    await looks(liveness, 3 * LOOKS)
    assert not run.lost
    bus.answers = True
    await liveness.look()
    assert run.lost


async def test_an_ended_run_is_not_ended_again(liveness: Liveness) -> None:
    run = Run()
    liveness.begin("w", run)
    liveness.end("w", run)
    liveness.end("w", run)
    await looks(liveness, 2 * LOOKS)
    assert not run.lost
