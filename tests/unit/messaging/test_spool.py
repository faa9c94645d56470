"""The spool: what was written is there, whatever happened to who wrote it, and never in two hands."""

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from messaging import spool
from messaging.spool import Segment, Spool, SpoolFullError

MANY = 1 << 20


def taken(source: Spool) -> list[bytes]:
    """Everything that can be had, taken away."""
    found = []
    while (segment := source.take()) is not None:
        found += segment.records()
        segment.remove()
    return found


def test_what_was_written_is_taken_in_order_and_the_folder_is_empty_then(tmp_path: Path) -> None:
    here = Spool(tmp_path / "deep" / "spool", MANY)
    here.append([b"one", b"two"])
    here.append([b"three"])
    assert taken(here) == [b"one", b"two", b"three"]
    assert list((tmp_path / "deep" / "spool").iterdir()) == []
    here.append([b"four"])
    assert taken(here) == [b"four"]


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


def test_a_living_process_keeps_its_files(tmp_path: Path) -> None:
    writer, other = Spool(tmp_path, MANY), Spool(tmp_path, MANY)
    writer.append([b"mine"])
    assert other.take() is None
    segment = writer.take()
    assert segment is not None
    assert other.take() is None, "being sent is not being left"
    segment.close()
    again = other.take()
    assert again is not None
    assert again.records() == [b"mine"]
    assert Spool(tmp_path, MANY).take() is None


def test_of_two_that_want_a_file_one_gets_it_and_a_removed_one_is_nobodys(tmp_path: Path) -> None:
    dead = Spool(tmp_path, MANY)
    dead.append([b"x"])
    dead.close()
    first, second = Spool(tmp_path, MANY), Spool(tmp_path, MANY)
    segment = first.take()
    assert segment is not None
    path = segment.path
    late = os.open(path, os.O_RDWR)  # the second one has opened it, and comes to the lock only afterwards
    segment.remove()
    assert not spool._lock(late, path)
    assert second.take() is None


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_torn_tail_is_ignored_wherever_it_was_torn(tmp_path: Path, cut: int) -> None:
    dead = Spool(tmp_path, MANY)
    dead.append([b"whole", b"torn"])
    dead.close()
    (path,) = tmp_path.glob("*.spool")
    os.truncate(path, path.stat().st_size - cut)
    assert taken(Spool(tmp_path, MANY)) == [b"whole"]
    assert list(tmp_path.iterdir()) == []


def test_zeros_after_a_power_loss_are_a_torn_tail(tmp_path: Path) -> None:
    dead = Spool(tmp_path, MANY)
    dead.append([b"whole"])
    dead.close()
    (path,) = tmp_path.glob("*.spool")
    with open(path, "ab") as file:
        file.write(bytes(100))
    assert taken(Spool(tmp_path, MANY)) == [b"whole"]


def test_a_damaged_record_is_kept_aside(tmp_path: Path) -> None:
    dead = Spool(tmp_path, MANY)
    dead.append([b"whole", b"spoilt"])
    dead.close()
    (path,) = tmp_path.glob("*.spool")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"spoilt", b"spoiLt"))
    assert taken(Spool(tmp_path, MANY)) == [b"whole"]
    (copy,) = tmp_path.iterdir()
    assert (copy.suffix, b"spoiLt" in copy.read_bytes()) == (".bad", True)


def test_it_is_bounded_over_all_processes(tmp_path: Path) -> None:
    one, other = Spool(tmp_path, 1000), Spool(tmp_path, 1000)
    one.append([bytes(500)])
    with pytest.raises(SpoolFullError):
        other.append([bytes(500)])
    other.append([b"small"])
    taken(one)
    other.append([bytes(500)])
    assert 500 < one.size() < 1000


def test_a_file_ends_at_its_size_and_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 100)
    here = Spool(tmp_path, MANY)
    for number in range(10):
        here.append([bytes([number]) * 60])
    assert len(list(tmp_path.glob("*.spool"))) == 5
    assert [record[0] for record in taken(here)] == list(range(10))


def _full_after(written: int) -> Callable[[int, bytes], int]:
    """os.write on a disk that has this much room: it writes what fits, then fails."""
    write = os.write

    def limited(descriptor: int, data: bytes) -> int:
        nonlocal written
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = bytes(data)[:written]
        written -= len(part)
        return write(descriptor, part)

    return limited


def test_a_full_disk_leaves_no_half_record_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Spool(tmp_path, MANY)
    here.append([b"before"])
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", _full_after(5))
        with pytest.raises(OSError, match="space"):
            here.append([b"too much"])
    here.append([b"after"])
    assert taken(here) == [b"before", b"after"]


def test_a_segment_that_cannot_be_mended_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    here = Spool(tmp_path, MANY)
    here.append([b"before"])
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", _full_after(5))
        patched.setattr(os, "ftruncate", fails)
        with pytest.raises(OSError, match="Input/output"):
            here.append([b"torn"])
    here.append([b"after"])
    assert taken(here) == [b"before", b"after"]


def test_a_file_made_at_the_moment_somebody_looks_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, other = Spool(tmp_path, MANY), Spool(tmp_path, MANY)
    lock, stolen = spool._lock, []

    def late(descriptor: int, path: Path) -> bool:
        if not stolen:
            stolen.append(path)
            segment: Segment | None = other.take()
            assert segment is not None
            assert segment.records() == []
            segment.remove()
        return lock(descriptor, path)

    monkeypatch.setattr(spool, "_lock", late)
    here.append([b"safe"])
    assert taken(here) == [b"safe"]
