"""Pacing: many streams of one worker send less often, few of them at once."""

import time

import pytest

from inference.pacing import pause_seconds


@pytest.mark.parametrize(("streams", "least", "most"), [(1, 0.0, 0.001), (20, 0.007, 0.013), (1000, 0.37, 0.63)])
def test_the_pause_grows_with_the_streams(streams: int, least: float, most: float) -> None:
    now = time.monotonic() + 1000  # so far ahead that the time this takes does not count
    for _ in range(100):
        pause = pause_seconds(streams, now) - (now - time.monotonic())
        assert least <= pause + 0.0005
        assert pause <= most


def test_the_first_event_waits_for_nothing() -> None:
    assert pause_seconds(1000, float("-inf")) < 0
