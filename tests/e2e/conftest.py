"""The whole platform: the demo model and a synthetic one beside it, behind the real Envoy."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.ports import free_port
from tests.e2e.platform import REPOSITORY, Platform, Up, up


@pytest.fixture(scope="session")
def start_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Starts platforms of the tests' own; what still runs at the end is ended."""
    started: list[Platform] = []

    def start(*arguments: str, state: Path | None = None) -> Platform:
        folder = state or tmp_path_factory.mktemp("state")
        platform = up("--state", str(folder), "--port", str(free_port()), *arguments)
        started.append(platform)
        return platform

    yield start
    for platform in started:
        platform.close()


@pytest.fixture(scope="session")
def platform(start_platform: Up) -> Platform:
    """One platform for all tests that only use it: the demo model and the synthetic one."""
    return start_platform(
        "-f", str(REPOSITORY / "models/demo.yaml"), "-f", str(REPOSITORY / "tests/e2e/synthetic.yaml")
    )
