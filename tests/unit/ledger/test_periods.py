"""Days and months in UTC."""

from datetime import UTC, datetime

import pytest

from ledger.periods import LIFE, counter_seconds, next_month, today

NEW_YEARS_EVE = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_today_names_the_periods_and_knows_their_ends():
    now = today(NEW_YEARS_EVE.timestamp())
    assert [now.name(period) for period in ("day", "month", "life")] == ["2026-12-31", "2026-12", LIFE]
    year_ends = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    assert [now.ends(period) for period in ("day", "month", "life")] == [year_ends, year_ends, None]


@pytest.mark.parametrize(("day", "month"), [(1, 3), (28, 3), (29, 3)])
def test_a_month_ends_at_the_next_ones_first_midnight(day, month):
    assert next_month(datetime(2028, 2, day, 5, tzinfo=UTC)) == datetime(2028, month, 1, tzinfo=UTC)


def test_counters_outlive_their_period():
    assert (counter_seconds("life"), counter_seconds("day") > 86_400, counter_seconds("month") > 31 * 86_400) == (
        0,
        True,
        True,
    )
