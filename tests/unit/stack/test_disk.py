"""How much free disk a start needs."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from stack import disk
from stack.errors import StackError
from stack.settings import StackSettings

MEGABYTES = 1 << 20


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many megabytes every disk has free."""
    found = {"megabytes": 0}
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=found["megabytes"], f_frsize=MEGABYTES))
    return found


def need(settings: StackSettings, free: dict[str, int]) -> int:
    """The fewest megabytes with which it starts."""
    for free["megabytes"] in range(1000):
        try:
            disk.check(settings)
        except StackError as complaint:
            assert f"has {free['megabytes']} MB free" in str(complaint)
        else:
            return free["megabytes"]
    raise AssertionError("never")


def test_a_first_start_needs_room_for_a_database(tmp_path: Path, free: dict[str, int]) -> None:
    state = tmp_path / "not" / "there"
    assert need(StackSettings(state), free) == 360
    assert need(StackSettings(state, postgres_url="postgres://x"), free) == 64
    assert not state.exists()


def test_a_later_start_needs_less_unless_the_first_was_cut_short(tmp_path: Path, free: dict[str, int]) -> None:
    database = tmp_path / "postgres" / "data"
    database.mkdir(parents=True)
    (database / "PG_VERSION").touch()
    assert need(StackSettings(tmp_path), free) == 64
    (tmp_path / "postgres" / disk.HALF_MADE).touch()
    assert need(StackSettings(tmp_path), free) == 360


def test_too_little_is_one_sentence_with_numbers_and_what_to_do(tmp_path: Path, free: dict[str, int]) -> None:
    free["megabytes"] = 100
    with pytest.raises(StackError) as complaint:
        disk.check(StackSettings(tmp_path))
    assert str(complaint.value) == (
        f"the disk of {tmp_path} has 100 MB free, where 360 MB are needed (64 MB for streams, counters and logs,"
        " 40 MB for a new database, 256 MB for its write-ahead log); free some, or choose a --state on a larger disk"
    )
