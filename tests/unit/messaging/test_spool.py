"""The spool: what was written is there, whatever happened to who wrote it, and never in two hands."""

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from messaging import spool
from messaging.spool import Spool, SpoolFullError

MANY = 1 << 20


def taken(source: Spool, most: int = 1000) -> list[bytes]:
    """Everything that can be had, taken away."""
    found = []
    while records := source.take(most):
        found += [record.data for record in records]
        source.remove(records)
    return found


def abandoned_copy(folder: Path) -> Path:
    """The folder as a kill of its process would leave it: closing a database tidies up after itself."""
    copy = folder.with_name(f"{folder.name}-abandoned")
    shutil.copytree(folder, copy)
    return copy


def test_what_was_written_is_taken_in_order_and_gives_its_room_back(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "spool"
    here = Spool(folder, MANY)
    here.append([b"one", b"two"])
    here.append([b"three"])
    assert taken(here) == [b"one", b"two", b"three"]
    assert here.size() == 0
    empty_bytes = _disk_bytes(folder)
    here.append([bytes(100_000)])
    assert taken(here) == [bytes(100_000)]
    assert _disk_bytes(folder) == empty_bytes
    here.append([b"four"])
    assert taken(here) == [b"four"]


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.sqlite3"))


def test_a_spool_that_holds_nothing_writes_nothing(tmp_path: Path) -> None:
    here = Spool(tmp_path, MANY)
    assert (here.take(10), here.size()) == ([], 0)
    here.close()
    assert list(tmp_path.iterdir()) == []


def test_a_thread_that_comes_after_the_end_opens_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MANY)
    spool.append([b"kept"])
    spool.close()
    with pytest.raises(OSError, match="closed"):
        spool.append([b"late"])
    assert [record.data for record in Spool(tmp_path, MANY).take(10)] == [b"kept"]


def test_what_a_killed_process_left_is_taken_by_another(tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from messaging.spool import Spool
        Spool(Path(sys.argv[1]), 1 << 20).append([b"from the dead"])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], timeout=60)
    assert taken(Spool(tmp_path, MANY)) == [b"from the dead"]


def test_what_one_process_has_taken_no_other_gets_until_it_is_given_back(tmp_path: Path) -> None:
    writer, other = Spool(tmp_path, MANY), Spool(tmp_path, MANY)
    writer.append([b"mine", b"too"])
    records = writer.take(1)
    assert [record.data for record in other.take(10)] == [b"too"]
    assert other.take(10) == []
    writer.give_back(records)
    assert [record.data for record in other.take(10)] == [b"mine"]
    other.close()
    assert [record.data for record in Spool(tmp_path, MANY).take(10)] == [b"mine", b"too"]


def test_what_a_killed_process_had_taken_is_had_again_after_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, other = Spool(tmp_path, MANY), Spool(tmp_path, MANY)
    killed.append([b"x"])
    late = killed.take(1)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + spool.LEASE_SECONDS - 1)
    assert other.take(1) == []
    monkeypatch.setattr(time, "time", lambda: now + spool.LEASE_SECONDS + 1)
    assert [record.data for record in other.take(1)] == [b"x"]
    killed.remove(late)  # it was only slow: what it sent need not be sent again
    assert other.size() == 0


def test_a_clock_that_is_set_back_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, other = Spool(tmp_path, MANY), Spool(tmp_path, MANY)
    killed.append([b"x"])
    killed.take(1)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert [record.data for record in other.take(1)] == [b"x"]


def test_of_many_that_take_at_once_one_gets_each_record(tmp_path: Path) -> None:
    Spool(tmp_path, MANY).append([str(number).encode() for number in range(500)])
    found: list[list[bytes]] = []

    def take_all() -> None:
        found.append(taken(Spool(tmp_path, MANY), 7))

    threads = [threading.Thread(target=take_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(int(data) for each in found for data in each) == list(range(500))


def test_many_that_make_the_database_at_once_lose_nothing(tmp_path: Path) -> None:
    begin = threading.Barrier(8)

    def write(number: int) -> None:
        begin.wait(60)
        Spool(tmp_path, MANY).append([str(number).encode()])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(taken(Spool(tmp_path, MANY))) == [str(number).encode() for number in range(8)]


@pytest.mark.parametrize("cut", [*range(1, 11), 100, 4095, 4097])
def test_a_torn_tail_is_ignored_wherever_it_was_torn(tmp_path: Path, cut: int) -> None:
    here = Spool(tmp_path / "spool", MANY)
    here.append([b"whole"])
    here.append([b"torn"])
    copy = abandoned_copy(tmp_path / "spool")
    (log,) = copy.glob("*-wal")
    os.truncate(log, log.stat().st_size - cut)
    assert taken(Spool(copy, MANY)) == [b"whole"]
    assert not list(copy.glob("*.bad"))


def test_zeros_after_a_power_loss_are_a_torn_tail(tmp_path: Path) -> None:
    Spool(tmp_path / "spool", MANY)
    here = Spool(tmp_path / "spool", MANY)
    here.append([b"whole"])
    copy = abandoned_copy(tmp_path / "spool")
    (log,) = copy.glob("*-wal")
    with open(log, "ab") as file:
        file.write(bytes(10_000))
    assert taken(Spool(copy, MANY)) == [b"whole"]


def test_a_damaged_record_is_kept_aside(tmp_path: Path) -> None:
    here = Spool(tmp_path, MANY)
    here.append([b"whole", b"spoilt"])
    here.close()
    (path,) = tmp_path.glob("*.sqlite3")
    path.write_bytes(path.read_bytes().replace(b"spoilt", b"spoiLt"))
    assert taken(Spool(tmp_path, MANY)) == [b"whole"]
    assert _kept_aside(path) == [("wrong checksum", b"spoiLt")]


def test_a_record_of_another_version_is_kept_aside(tmp_path: Path) -> None:
    here = Spool(tmp_path, MANY)
    here.append([b"strange"])
    (record,) = here.take(1)
    here.set_aside(record, "not a parcel")
    here.close()
    assert Spool(tmp_path, MANY).size() == 0
    (path,) = tmp_path.glob("*.sqlite3")
    assert _kept_aside(path) == [("not a parcel", b"strange")]


def _kept_aside(path: Path) -> list[tuple[str, bytes]]:
    database = sqlite3.connect(path)
    try:
        return database.execute("SELECT why, data FROM damaged").fetchall()
    finally:
        database.close()


@pytest.mark.parametrize("damage", ["header", "everything", "schema"])
def test_a_damaged_database_is_kept_aside_and_a_new_one_begun(tmp_path: Path, damage: str) -> None:
    here = Spool(tmp_path, MANY)
    here.append([b"before"])
    here.close()
    (path,) = tmp_path.glob("*.sqlite3")
    data = path.read_bytes()
    path.write_bytes(
        {"header": b"x" * 100 + data[100:], "everything": b"x" * len(data), "schema": data[:4000] + bytes(4096)}[damage]
    )
    again, other = Spool(tmp_path, MANY), Spool(tmp_path, MANY)
    with pytest.raises(OSError, match="usage"):
        again.append([b"after"])
    again.append([b"after"])
    other.append([b"other"])
    assert taken(other)[-2:] == [b"after", b"other"]
    assert len(list(tmp_path.glob("*.bad"))) == 1


def test_what_can_be_read_of_a_damaged_database_is_sent(tmp_path: Path) -> None:
    here = Spool(tmp_path, MANY)
    numbered = [f"{number:06}".encode() * 20 for number in range(2000)]
    here.append(numbered)
    here.close()
    (path,) = tmp_path.glob("*.sqlite3")
    data = bytearray(path.read_bytes())
    data[-3 * 4096 :] = b"x" * 3 * 4096  # the last pages
    path.write_bytes(data)
    again = Spool(tmp_path, MANY)
    with pytest.raises(OSError, match="malformed"):
        again.take(2000)
    found = taken(again)
    assert 1000 < len(found) < 2000
    assert found == numbered[: len(found)]


def test_a_process_that_still_has_the_damaged_database_open_writes_into_the_new_one(tmp_path: Path) -> None:
    early = Spool(tmp_path, MANY)
    early.append([b"early"])
    (path,) = tmp_path.glob("*.sqlite3")
    for each in tmp_path.iterdir():
        each.rename(tmp_path / each.name.replace(".sqlite3", ".bad"))
    early.append([b"late"])
    assert taken(Spool(tmp_path, MANY)) == [b"late"]
    assert path.with_name("usage.2.sqlite3").exists()


def test_it_is_bounded_over_all_processes(tmp_path: Path) -> None:
    one, other = Spool(tmp_path, 1000), Spool(tmp_path, 1000)
    one.append([bytes(500)])
    with pytest.raises(SpoolFullError):
        other.append([bytes(500)])
    other.append([b"small"])
    taken(one)
    other.append([bytes(500)])
    assert 500 < one.size() < 1000


def test_records_are_taken_in_batches(tmp_path: Path) -> None:
    here = Spool(tmp_path, MANY)
    here.append([bytes([number]) * 60 for number in range(10)])
    assert [record.data[0] for record in here.take(4)] == [0, 1, 2, 3]
    assert [record[0] for record in taken(here, 4)] == list(range(4, 10))


@contextmanager
def _disk_with_room_for(path: Path, room: int) -> Iterator[None]:
    """No file of this process may grow by more than that many bytes over what this one has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 5, 4096, 5000, 12_000, 50_000])
def test_a_full_disk_leaves_no_half_record_behind(tmp_path: Path, room: int) -> None:
    here = Spool(tmp_path, MANY)
    here.append([b"before"])
    (log,) = tmp_path.glob("*-wal")
    with _disk_with_room_for(log, room), pytest.raises(OSError, match=r"full|I/O"):
        here.append([b"too much" * 10_000])
    here.append([b"after"])
    assert taken(here) == [b"before", b"after"]
    assert here.size() == 0


def test_a_disk_that_is_full_before_the_database_is_made_is_an_error_and_no_more(tmp_path: Path) -> None:
    here = Spool(tmp_path, MANY)
    (tmp_path / "empty").touch()
    with _disk_with_room_for(tmp_path / "empty", 100), pytest.raises(OSError, match="usage"):
        here.append([b"x"])
    here.append([b"y"])
    assert taken(here) == [b"y"]
