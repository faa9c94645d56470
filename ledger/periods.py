"""Calendar periods in UTC: the names of the days and months that balances and budgets count in, and when they end."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

LIFE = "life"
_DAY_SECONDS = 86_400


class Today(NamedTuple):
    """The current day and month."""

    day: str  # "2026-11-21"
    month: str  # "2026-11"
    day_ends: float  # unix time
    month_ends: float

    def name(self, period: str) -> str:
        """The name of a limit's current period."""
        return self.day if period == "day" else self.month if period == "month" else LIFE

    def ends(self, period: str) -> float | None:
        """When the current period ends (unix time); None: never."""
        return self.day_ends if period == "day" else self.month_ends if period == "month" else None


def today(now: float) -> Today:
    """The day and month of a unix time. A clock that is wrong by a second counts that second's requests a day off."""
    moment = datetime.fromtimestamp(now, UTC)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return Today(
        day_name(moment), month_name(moment), midnight.timestamp() + _DAY_SECONDS, next_month(moment).timestamp()
    )


def day_name(moment: datetime) -> str:
    """Such as "2026-11-21"; `moment` is in UTC."""
    return f"{moment:%Y-%m-%d}"


def month_name(moment: datetime) -> str:
    """Such as "2026-11"; `moment` is in UTC."""
    return f"{moment:%Y-%m}"


def month_start(moment: datetime) -> datetime:
    """The first midnight of the moment's month."""
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def next_month(moment: datetime) -> datetime:
    """The first midnight of the month after the moment's."""
    return month_start(month_start(moment) + timedelta(days=32))


def counter_seconds(period: str) -> int:
    """How long a period's counters in Valkey are kept after they were first needed; 0: for ever."""
    return {"day": 2 * _DAY_SECONDS, "month": 33 * _DAY_SECONDS}.get(period, 0)
