"""What a key has left, as its owner is told."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """What a key had left after a check; None where there is no limit."""

    requests_limit: int | None = None
    requests_remaining: int | None = None
    requests_reset_seconds: float | None = None  # until one more request is possible than now
    tokens_limit: int | None = None
    tokens_remaining: int | None = None
