"""Row K5: what a wrong key costs says nothing of whether its id exists."""

import contextlib
import math
import statistics
import time
from typing import Any, cast

from authz.check.authorizer import Authorizer
from authz.credentials.key_record import KeyRecord
from common.errors import UplionError
from credentials import api_keys

PEPPER = b"pepper"
SAMPLES = 10_000
ROUNDS = 12  # what the machine does besides may look like a difference once; a difference of ours is there each time


UNHEARD_NS = (
    100  # a different branch; a digest not made would be fifteen times that, and a network's noise 10,000 times
)


def compared(left: list[int], right: list[int]) -> tuple[float, float]:
    """Welch's t, and the difference in ns, of the quicker nine tenths: the rest is interrupts and collections."""
    one, two = (sorted(each)[: len(each) * 9 // 10] for each in (left, right))
    error = statistics.variance(one) / len(one) + statistics.variance(two) / len(two)
    difference = abs(statistics.fmean(one) - statistics.fmean(two))
    return difference / math.sqrt(error), difference


def equal(found: list[tuple[float, float]]) -> bool:
    return bool(found) and (found[-1][0] < 4.5 or found[-1][1] < UNHEARD_NS)


def differences(decider: Authorizer, *cases: tuple[str, KeyRecord | None]) -> list[tuple[float, float]]:
    """Of each round, in CPU time and the cases by turns; ends with the first that shows none."""
    parsed = [(api_keys.parse(text), text, record) for text, record in cases]
    found: list[tuple[float, float]] = []
    while len(found) < ROUNDS and not equal(found):
        taken: list[list[int]] = [[], []]
        for number in range(SAMPLES):
            for each in (0, 1) if number % 2 else (1, 0):
                began = time.process_time_ns()
                with contextlib.suppress(UplionError):
                    decider._verified(*parsed[each])
                taken[each].append(time.process_time_ns() - began)
        found.append(compared(*taken))
    return found


def test_an_unknown_id_takes_as_long_as_a_wrong_secret() -> None:
    decider = Authorizer(*cast(Any, (None, None, {"1": PEPPER}, None, None, None)))
    key = api_keys.generate()
    record = KeyRecord(key.id, "a", api_keys.digest(key.secret, PEPPER), "1", frozenset({"inference"}), active=True)
    wrong = api_keys.ApiKey("live", key.id, api_keys.generate().secret).text
    found = differences(decider, (wrong, record), (api_keys.generate().text, None))
    assert equal(found), found
