"""Each kind of part is stopped (SIGSTOP): it is found, named and started again, and the ledger is right afterwards."""

import asyncio
import json
import os
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.chaos.books import until_quiet
from tests.chaos.crowd import Crowd
from tests.kit.platform import REPOSITORY, UPLION, Platform, Up
from tests.kit.until import until_sync


@pytest.fixture(scope="module")
def hung_platform(start_platform: Up) -> Platform:
    return start_platform("-f", str(REPOSITORY / "tests/e2e/synthetic.yaml"))


def _status(platform: Platform) -> dict[str, Any]:
    done = subprocess.run(
        [UPLION, "status", "--json", "--state", str(platform.state)], capture_output=True, text=True, timeout=120
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def part_of(platform: Platform, name: str) -> dict[str, Any]:
    run = json.loads((platform.state / "run.json").read_text())
    return next((part for part in run["parts"] if part["name"] == name), {"pid": None, "status": "", "message": ""})


def answers(platform: Platform) -> bool:
    body = {"model": "synthetic", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    request = urllib.request.Request(
        f"{platform.facts['base_url']}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {platform.facts['api_key']}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def crowd_of(platform: Platform) -> Iterator[Crowd]:
    """Clients that ask all the while, whatever they are told."""
    crowd = Crowd(platform.facts["base_url"], platform.facts["api_key"], seed=1)
    stop, loop = asyncio.Event(), asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(crowd.run(3, stop)))
    thread.start()
    try:
        yield crowd
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def _names(platform: Platform) -> list[str]:
    return [part["name"] for part in json.loads((platform.state / "run.json").read_text())["parts"]]


@pytest.mark.parametrize(
    "kind",
    [
        "authz",
        "nats",
        "worker",
        *(pytest.param(kind, marks=pytest.mark.chaos) for kind in ("router", "billing", "envoy", "postgres", "valkey")),
    ],
)
def test_a_stopped_part_is_found_named_and_started_again(hung_platform: Platform, kind: str) -> None:
    name = next(name for name in _names(hung_platform) if name.startswith(kind))
    others = {other: part_of(hung_platform, other)["pid"] for other in _names(hung_platform) if other != name}
    with crowd_of(hung_platform) as crowd:
        until_sync(lambda: [told for told in crowd.told if told.fate == "ok"])
        pid = part_of(hung_platform, name)["pid"]
        os.kill(pid, signal.SIGSTOP)
        until_sync(lambda: part_of(hung_platform, name)["status"] == "unhealthy")
        shown = _status(hung_platform)
        (part,) = [part for part in shown["parts"] if part["name"] == name]
        assert (shown["healthy"], part["healthy"], part["status"]) == (False, False, "unhealthy")
        assert part["message"] == "stopped by a signal: no sign of life"
        until_sync(lambda: part_of(hung_platform, name)["pid"] not in (pid, None))
        until_sync(lambda: part_of(hung_platform, name)["status"] == "ready")
        assert part_of(hung_platform, name)["last_end"] == "killed: stopped by a signal: no sign of life"
        until_sync(lambda: answers(hung_platform))
        served = len(crowd.told)
        until_sync(lambda: [told for told in crowd.told[served:] if told.fate == "ok"])
    until_sync(hung_platform.is_healthy)
    assert {other: part_of(hung_platform, other)["pid"] for other in others} == others
    asyncio.run(until_quiet(hung_platform))
    assert hung_platform.cli("reconcile")["differences"] == []


def test_a_stopped_supervisor_is_found_too(start_platform: Up) -> None:
    platform = start_platform("-f", str(REPOSITORY / "tests/e2e/synthetic.yaml"))
    assert _status(platform)["healthy"]
    platform.process.send_signal(signal.SIGSTOP)
    try:
        status = until_sync(lambda: (found := _status(platform)) and not found["healthy"] and found)
        (supervisor,) = [part for part in status["parts"] if part["name"] == "supervisor"]
        assert supervisor["message"].startswith("no sign of life for")
    finally:
        platform.process.send_signal(signal.SIGCONT)
    until_sync(platform.is_healthy)
