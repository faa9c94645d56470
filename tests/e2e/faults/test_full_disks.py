"""A disk is full under one part: requests get 503 before anything runs, and all goes on by itself once there is room.

Each part's folder lies on a small file system of its own, in a mount namespace of the platform's.
"""

import asyncio
import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos.books import until_quiet
from tests.chaos.crowd import Told
from tests.e2e.faults.test_hangs import answers, crowd_of, part_of
from tests.kit.platform import REPOSITORY, Platform, Up
from tests.kit.until import until_sync

_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


def _mount_is_allowed() -> bool:
    command = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not _mount_is_allowed(), reason="mounting a small file system needs root")


class _Disk:
    """The small file system under a folder of a platform's state, as the platform sees it."""

    def __init__(self, start_platform: Up, tmp_path: Path, folder: str, size: str) -> None:
        state = tmp_path / "state"
        (state / folder).mkdir(parents=True, mode=0o700)
        state.chmod(0o700)
        private = ["unshare", "--mount", "--propagation", "private"]
        self.platform: Platform = start_platform(
            "-f",
            str(REPOSITORY / "tests/e2e/synthetic.yaml"),
            state=state,
            before=[*private, "sh", "-c", _MOUNT, "sh", size, str(state / folder)],
        )
        self._filler = Path(f"/proc/{self.platform.process.pid}/root{state / folder}/filler")

    def fill(self) -> None:
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        self._filler.unlink()


def test_nats_on_a_full_disk_bills_nothing_it_runs_and_resumes(start_platform: Up, tmp_path: Path) -> None:
    disk = _Disk(start_platform, tmp_path, "nats", "64m")
    platform = disk.platform
    with crowd_of(platform) as crowd:
        until_sync(lambda: [told for told in crowd.told if told.fate == "ok"])
        disk.fill()
        # Refused before a model runs: the usage could not be stored.
        until_sync(lambda: _all_refused(crowd.told[-9:]))
        until_sync(lambda: part_of(platform, "nats")["status"] == "unhealthy")
        assert part_of(platform, "nats")["message"].startswith("the disk is full that holds")
        assert part_of(platform, "nats")["restarts"] == 0  # no cure
        disk.free()
        until_sync(lambda: part_of(platform, "nats")["last_end"])
        assert re.match("killed: it cannot store messages of .*USAGE", part_of(platform, "nats")["last_end"])
        until_sync(lambda: answers(platform))
        served = len(crowd.told)
        until_sync(lambda: [told for told in crowd.told[served:] if told.fate == "ok"])
    assert {told.fate for told in crowd.told} <= {"ok", "failed"}
    until_sync(platform.is_healthy)
    _is_right(platform)


def _all_refused(told: list[Told]) -> bool:
    return len(told) == 9 and all(each.status == 503 for each in told)


def _is_right(platform: Platform) -> None:
    asyncio.run(until_quiet(platform))
    assert platform.cli("reconcile")["differences"] == []


def test_postgres_on_a_full_disk_costs_known_keys_nothing_and_bills_later(start_platform: Up, tmp_path: Path) -> None:
    disk = _Disk(start_platform, tmp_path, "postgres", "192m")
    platform = disk.platform
    with crowd_of(platform) as crowd:
        until_sync(lambda: [told for told in crowd.told if told.fate == "ok"])
        disk.fill()
        until_sync(lambda: part_of(platform, "postgres")["status"] == "unhealthy")
        assert part_of(platform, "postgres")["message"].startswith("the disk is full that holds")
        served = len(crowd.told)
        until_sync(lambda: len(crowd.told) > served + 20)
        disk.free()
        until_sync(platform.is_healthy)
    assert [told for told in crowd.told if told.fate != "ok"] == []
    _is_right(platform)


def test_a_spool_on_a_full_disk_stops_admissions_while_nats_is_away(start_platform: Up, tmp_path: Path) -> None:
    disk = _Disk(start_platform, tmp_path, "spool", "1m")
    platform = disk.platform
    with crowd_of(platform) as crowd:
        until_sync(lambda: [told for told in crowd.told if told.fate == "ok"])
        disk.fill()
        served = len(crowd.told)
        until_sync(lambda: [told for told in crowd.told[served:] if told.fate == "ok"])  # the spool is not needed now
        os.kill(part_of(platform, "nats")["pid"], 19)  # SIGSTOP: it is started again after 15 s
        until_sync(lambda: _all_refused(crowd.told[-9:]))
        until_sync(lambda: answers(platform))  # what is in memory is published: no room is needed for it
        disk.free()
    until_sync(platform.is_healthy)
    _is_right(platform)
