"""Pacing of streams: a worker with many of them sends each less often, with what was made meanwhile in one event.

An event costs router, edge and client 100 to 200 us together, whatever it holds, so it is the number of events that
overloads them. Up to twenty streams none waits longer than a step of 10 ms.
"""

import time
from random import Random

_EVENTS_PER_SECOND = 2_000  # of all streams of a worker: a third of what one router carries
_SPREAD = (0.75, 1.25)  # so that streams that began together do not stay together
_random = Random()  # noqa: S311 - not a secret


def pause_seconds(streams: int, sent_at: float) -> float:
    """How long one of so many streams, whose last event was sent then (monotonic), waits; not above 0: no longer."""
    return sent_at + streams / _EVENTS_PER_SECOND * _random.uniform(*_SPREAD) - time.monotonic()
