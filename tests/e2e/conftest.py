"""The whole platform: the demo model and a synthetic one beside it, behind the real Envoy."""

import pytest

from tests.kit.platform import REPOSITORY, Platform, Up, start_platform

__all__ = ["start_platform"]


@pytest.fixture(scope="session")
def platform(start_platform: Up) -> Platform:
    """One platform for all tests that only use it: the demo model and the synthetic one."""
    return start_platform(
        "-f", str(REPOSITORY / "models/demo.yaml"), "-f", str(REPOSITORY / "tests/e2e/synthetic.yaml")
    )
