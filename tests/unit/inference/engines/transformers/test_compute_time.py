"""What runs at once shares the time that passes."""

import threading
import time

import pytest

from inference.engines.output import Output
from inference.engines.transformers.compute_time import ComputeClock, StepClock


def test_the_spans_of_many_threads_never_sum_up_to_more_than_the_time_that_passed() -> None:
    clock = ComputeClock()
    spent: list[float] = []

    def work(number: int) -> None:
        for turn in range(50):
            span = clock.start()
            time.sleep(0.0005 * ((number + turn) % 3))
            spent.append(clock.stop(span))

    started_seconds = time.perf_counter()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed_seconds = time.perf_counter() - started_seconds
    assert len(spent) == 200
    assert min(spent) >= 0
    assert 0 < sum(spent) <= elapsed_seconds


def test_a_step_is_divided_by_tokens_and_a_silent_one_ends_where_the_next_begins() -> None:
    steps = StepClock(ComputeClock())
    prompt, other = Output(), Output()
    assert prompt.compute_seconds is None
    started_seconds = time.perf_counter()
    steps.begin([(prompt, 30), (other, 10)])
    time.sleep(0.01)
    steps.begin([(other, 1)])
    first_seconds = other.compute_seconds
    assert first_seconds is not None
    assert prompt.compute_seconds == pytest.approx(3 * first_seconds)
    time.sleep(0.01)
    steps.end()
    steps.end()
    assert other.compute_seconds is not None
    assert other.compute_seconds >= first_seconds + 0.01
    assert prompt.compute_seconds is not None
    assert prompt.compute_seconds + other.compute_seconds <= time.perf_counter() - started_seconds
