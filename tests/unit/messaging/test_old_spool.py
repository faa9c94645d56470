"""Files that the spool wrote before it was a database are sent once, and gone then."""

import fcntl
import os
import shutil
from pathlib import Path

import msgspec
import pytest
from uplion.billing.v1.usage_event_pb2 import UsageEvent

from messaging.spool import Spool
from messaging.stream_publisher import Parcel

OLD = Path(__file__).parent / "data" / "old_form.spool"  # written by the code of that time: three events
NAME = "1796085339830336031-9016-1.spool"
MANY = 1 << 20


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(OLD, tmp_path / NAME))


def taken(folder: Path) -> list[bytes]:
    spool = Spool(folder, MANY)
    records = spool.take(100)
    spool.remove(records)
    spool.close()
    return [record.data for record in records]


def ids(records: list[bytes]) -> list[str]:
    parcels = [msgspec.msgpack.decode(record, type=Parcel) for record in records]
    assert all(UsageEvent.FromString(parcel.event).request_id == parcel.id.split(".")[0] for parcel in parcels)
    return [parcel.id for parcel in parcels]


def test_they_are_taken_in_order_and_only_once(old: Path) -> None:
    assert ids(taken(old.parent)) == ["old-0.1", "old-1.1", "old-2.1"]
    assert not old.exists()
    assert taken(old.parent) == []


def test_they_are_taken_although_they_are_more_than_the_spool_may_hold(old: Path) -> None:
    assert len(Spool(old.parent, 1).take(100)) == 3


def test_a_process_of_the_old_version_keeps_its_files(old: Path) -> None:
    with open(old, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert taken(old.parent) == []
    assert len(taken(old.parent)) == 3


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_torn_tail_is_ignored_wherever_it_was_torn(old: Path, cut: int) -> None:
    os.truncate(old, old.stat().st_size - cut)
    assert ids(taken(old.parent)) == ["old-0.1", "old-1.1"]
    assert not list(old.parent.glob("*.bad"))


def test_zeros_after_a_power_loss_are_a_torn_tail(old: Path) -> None:
    with open(old, "ab") as file:
        file.write(bytes(100))
    assert len(taken(old.parent)) == 3


def test_a_damaged_record_is_kept_aside(old: Path) -> None:
    old.write_bytes(old.read_bytes().replace(b"old-2", b"old-X"))
    assert ids(taken(old.parent)) == ["old-0.1", "old-1.1"]
    assert b"old-X" in old.with_suffix(".bad").read_bytes()
