"""Platforms as in tests/e2e."""

from tests.e2e.conftest import start_platform

__all__ = ["start_platform"]
