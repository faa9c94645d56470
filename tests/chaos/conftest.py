"""Platforms of the tests' own."""

from tests.kit.platform import start_platform

__all__ = ["start_platform"]
