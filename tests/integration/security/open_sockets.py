"""Every socket that a family of processes holds, as the kernel tells it."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tests.kit.processes import children

_LISTENING = "0A"  # TCP_LISTEN
_UNCONNECTED = "07"  # a UDP socket that anybody can send to
_CONNECTED = "03"  # SS_CONNECTED, of a Unix socket


@dataclass(frozen=True)
class OpenSockets:
    """What others can reach."""

    tcp: dict[int, int]  # port -> pid
    udp: dict[int, int]  # port -> pid
    unix: dict[str, int]  # path, or @name in the abstract namespace -> pid
    unknown: tuple[str, ...]  # sockets of a kind that none of the kernel's tables showed


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for each in found:  # grows while it is walked
        found += [child for child in children(each) if child not in found]
    return found


def open_sockets(pids: Iterable[int]) -> OpenSockets:
    """Which sockets of these processes take connections or datagrams from others."""
    owners = {inode: pid for pid in pids for inode in _inodes(pid)}
    found = OpenSockets({}, {}, {}, ())
    known: set[str] = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for fields in _table(name):
            known.add(fields[9])
            if fields[9] in owners and fields[3] in (_LISTENING, _UNCONNECTED):
                ports = found.tcp if name.startswith("tcp") else found.udp
                ports[int(fields[1].rpartition(":")[2], 16)] = owners[fields[9]]
    for fields in _table("unix", fields=8):
        known.add(fields[6])
        if fields[6] in owners and len(fields) > 7 and fields[5] != _CONNECTED:
            found.unix[fields[7]] = owners[fields[6]]
    known |= {fields[9] for fields in _table("netlink")}
    still = {inode for pid in set(owners.values()) for inode in _inodes(pid)}  # not those that have been closed since
    return replace(found, unknown=tuple(sorted((owners.keys() - known) & still)))


def _inodes(pid: int) -> list[str]:
    found = []
    with suppress(OSError):  # it has ended
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = os.readlink(descriptor)
                if target.startswith("socket:["):
                    found.append(target[len("socket:[") : -1])
    return found


def _table(name: str, *, fields: int = 0) -> list[list[str]]:
    """Its rows; with `fields` the last of them may hold spaces."""
    try:
        lines = Path(f"/proc/net/{name}").read_text(errors="replace").splitlines()[1:]
    except OSError:
        return []
    return [line.split(None, fields - 1) for line in lines]
