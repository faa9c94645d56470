"""A platform started as a user would, by `uplion up --json`, and what tests ask of it."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from stack.ports import free_port

REPOSITORY = Path(__file__).parents[2]
UPLION = str(Path(sys.executable).with_name("uplion"))
DEMO = "uplion-demo"
SYNTHETIC = "synthetic"
_PATIENCE_SECONDS = 120.0  # a wait that only a failure makes this long


@dataclass
class Platform:
    """A running `uplion up --json`."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]
    clients: list[openai.OpenAI] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return Path(self.facts["state_dir"])

    @property
    def root_url(self) -> str:
        return str(self.facts["base_url"]).removesuffix("/v1")

    def cli(self, *arguments: str) -> Any:
        """Runs a command with --json against this instance; what it printed."""
        done = subprocess.run(
            [UPLION, *arguments, "--json", "--state", str(self.state)],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def is_healthy(self) -> bool:
        """Whether `uplion status` finds every part well."""
        command = [UPLION, "status", "--json", "--state", str(self.state)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS)
        return done.returncode == 0 and all(part["healthy"] for part in json.loads(done.stdout)["parts"])

    def client(self, **options: Any) -> openai.OpenAI:
        """The official SDK, as its user makes it."""
        chosen = {
            "base_url": self.facts["base_url"],
            "api_key": self.facts["api_key"],
            "timeout": _PATIENCE_SECONDS,
            **options,
        }
        self.clients.append(openai.OpenAI(**chosen))
        return self.clients[-1]

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        chosen = {
            "base_url": self.facts["base_url"],
            "api_key": self.facts["api_key"],
            "timeout": _PATIENCE_SECONDS,
            **options,
        }
        return openai.AsyncOpenAI(**chosen)

    def close(self) -> None:
        """Ends it, if it still runs, and closes what the tests opened."""
        if self.process.poll() is None:
            self.end()
        for client in self.clients:
            client.close()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def end(self, number: int = signal.SIGTERM, seconds: float = _PATIENCE_SECONDS) -> int:
        """Signals the supervisor and waits for it; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


Up = Callable[..., Platform]


def up(*arguments: str, before: Sequence[str] = ()) -> Platform:
    """`before`: a command that runs it."""
    process = subprocess.Popen(
        [*before, UPLION, "up", "--json", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    if not line:
        raise AssertionError(f"uplion up failed ({process.wait(_PATIENCE_SECONDS)}): {process.stderr.read()}")
    return Platform(process, json.loads(line))


@pytest.fixture(scope="session")
def start_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Starts platforms of the tests' own; what still runs at the end is ended."""
    started: list[Platform] = []

    def start(*arguments: str, state: Path | None = None, before: Sequence[str] = ()) -> Platform:
        folder = state or tmp_path_factory.mktemp("state")
        platform = up("--state", str(folder), "--port", str(free_port()), *arguments, before=before)
        started.append(platform)
        return platform

    yield start
    for platform in started:
        platform.close()
