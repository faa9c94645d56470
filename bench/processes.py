"""What the platform's processes use, read from /proc."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of the process, and of its children that ended or (Postgres' sessions) still run."""
    own = _stat_seconds(pid)
    return own + sum(cpu_seconds(child) for child in _children(pid))


def resident_mib(pid: int) -> tuple[float, float]:
    """Resident and proportional set size in MiB, children of servers included."""
    resident = proportional = 0.0
    for each in (pid, *_children(pid)):
        try:
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:"):
                    resident += int(line.split()[1]) / 1024
                elif line.startswith("Pss:"):
                    proportional += int(line.split()[1]) / 1024
        except OSError:
            continue
    return resident, proportional


def machine() -> str:
    """The machine in a line: processor, cores, memory."""
    model = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown processor",
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1024 / 1024
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB"


def _stat_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(fields[index]) for index in (11, 12, 13, 14)) / _TICKS


def _children(pid: int) -> list[int]:
    """Child processes that are not parts of their own: only servers' children count here."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if name != "postgres":
            return []
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
