"""Calendar periods that budgets count in, UTC: what they are called and when they end."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

LIFE = "life"
_DAY_SECONDS = 86_400


class Today(NamedTuple):
    """The day and the month that it is."""

    day: str  # "2026-11-21"
    month: str  # "2026-11"
    day_ends: float  # unix time
    month_ends: float

    def name(self, period: str) -> str:
        """What counters of a limit's period are called now."""
        return self.day if period == "day" else self.month if period == "month" else LIFE

    def ends(self, period: str) -> float | None:
        """When they start again from nothing (unix time); None: never."""
        return self.day_ends if period == "day" else self.month_ends if period == "month" else None


def today(now: float) -> Today:
    """Of a unix time. By authz's own clock: one that is wrong by a second counts a second's requests a day off."""
    moment = datetime.fromtimestamp(now, UTC)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    next_month = (midnight.replace(day=1) + timedelta(days=32)).replace(day=1)
    return Today(
        f"{moment:%Y-%m-%d}",
        f"{moment:%Y-%m}",
        midnight.timestamp() + _DAY_SECONDS,
        next_month.timestamp(),
    )


def life_seconds(period: str) -> int:
    """How long a period's counters are kept after they were first needed; 0: for ever."""
    return {"day": 2 * _DAY_SECONDS, "month": 33 * _DAY_SECONDS}.get(period, 0)
