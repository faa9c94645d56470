"""The stack's supervisor in a process of its own, as `uplion up --detach` runs it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stack.__main__ import to_json
from stack.settings import StackSettings
from tests.kit.processes import children
from tests.kit.until import until_sync

MANIFEST = """apiVersion: model.youxam.com/v1alpha1
kind: AIModel
metadata: {name: small}
spec: {type: local, model: none, engine: synthetic, maxProcessNum: 8}
"""
_START_SECONDS = 120.0


@dataclass
class RunningStack:
    """A supervisor in a process of its own."""

    process: subprocess.Popen[str]
    settings: StackSettings

    def run(self) -> dict[str, Any]:
        """What it says of itself."""
        try:
            found: dict[str, Any] = json.loads((self.settings.state / "run.json").read_text())
        except FileNotFoundError:
            return {}
        return found if found.get("pid") == self.process.pid else {}

    def part(self, name: str) -> dict[str, Any]:
        return next(part for part in self.run()["parts"] if part["name"] == name)

    def pids(self) -> list[int]:
        """Of all parts, and of what they have started themselves."""
        family = [part["pid"] for part in self.run()["parts"] if part["pid"]]
        for pid in family:  # grows while it is walked: children of children, too
            family += children(pid)
        return family

    def until(self, condition: Callable[[], Any], seconds: float = 60.0) -> None:
        try:
            until_sync(condition, seconds)
        except AssertionError as late:
            late.add_note(f"the stack says: {self.run()}")
            raise

    def until_ready(self) -> "RunningStack":
        self.until(lambda: self.run().get("status") == "ready" or self.process.poll() is not None, _START_SECONDS)
        assert self.run().get("status") == "ready", self.process.communicate()
        return self

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(90)


StartStack = Callable[..., RunningStack]


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifests") / "small.yaml"
    path.write_text(MANIFEST)
    return path


@pytest.fixture(scope="session")
def start_stack(tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> Iterator[StartStack]:
    started: list[RunningStack] = []

    def start(**chosen: Any) -> RunningStack:
        wanted: dict[str, Any] = {"port": 0, "manifests": (manifest,), **chosen}
        wanted.setdefault("state", tmp_path_factory.mktemp("state"))
        settings = StackSettings(**wanted)
        command = [sys.executable, "-m", "stack"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd="/")
        assert process.stdin is not None
        with process.stdin as given:
            given.write(to_json(settings))
        process.stdin = None  # `communicate` would flush it
        started.append(RunningStack(process, settings))
        return started[-1]

    yield start
    for stack in started:
        if stack.process.poll() is None:
            os.kill(stack.process.pid, signal.SIGTERM)
        stack.process.communicate(timeout=90)


@pytest.fixture(scope="session")
def stack(start_stack: StartStack) -> RunningStack:
    """One for all tests that leave it as it was."""
    return start_stack().until_ready()
