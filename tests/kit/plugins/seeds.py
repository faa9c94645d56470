"""The seed of a random test: of the environment in the merge gate, drawn elsewhere, and printed with a failure."""

import os
import random

import pytest

VARIABLE = "UPLION_TEST_SEED"


@pytest.fixture
def seed() -> int:
    """UPLION_TEST_SEED when it is set, else a random one; a failed test shows how to repeat it."""
    chosen = int(os.environ.get(VARIABLE) or random.getrandbits(32))
    print(f"{VARIABLE}={chosen} repeats this")
    return chosen
