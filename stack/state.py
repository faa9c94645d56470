"""The state folder of a stack: who holds it, its secrets and ports, its logs, and what runs now."""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stack.errors import StackError

LOG_BYTES_MAX = 16 << 20  # of one part's log; the half before it is kept beside it
_SECRET_BYTES = 24
_LOCK_WAIT_SECONDS = 3.0  # a supervisor that was just stopped may still be ending


class State:
    """Paths in one state folder; only its owner may read them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.logs = self.folder / "logs"
        self.keys_file = self.folder / "keys.json"
        self.spool = self.folder / "spool"  # usage events that NATS did not take, of the router and all workers

    def log(self, part: str) -> Path:
        """Where a part writes."""
        return self.logs / f"{part.replace('/', '-')}.log"

    def create(self) -> None:
        """Makes the folder; raises StackError when it cannot be used."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # A link is judged too: in a folder that all may write to, anybody can make one that leads to ours.
            if owners := {self.folder.lstat().st_uid, self.folder.stat().st_uid} - {0, os.geteuid()}:
                raise StackError(
                    f"the state folder {self.folder} belongs to another user (id {owners.pop()}), who could change what"
                    " is in it; choose another --state, or chown it"
                )
            self.folder.chmod(0o700)
            self.logs.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StackError(f"the state folder {self.folder} cannot be used: {error.strerror}") from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the folder against a second supervisor; the kernel lets go when we end, however we end."""
        with open(self.folder / "lock", "a+", encoding="ascii", opener=_private) as lock:
            deadline = time.monotonic() + _LOCK_WAIT_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    # Waits for one that is stopping, not for one that runs.
                    if self.read_run().get("status") != "stopping" or time.monotonic() > deadline:
                        raise StackError(
                            f"another uplion runs with the state folder {self.folder}; end it with"
                            f" `uplion down --state {self.folder}`, or choose another --state and --port"
                        ) from None
                    time.sleep(0.05)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def secrets(self) -> dict[str, str]:
        """Passwords of the servers and the peppers of the keys."""
        return self._kept("secrets.json")

    def ensure_secrets(self, names: tuple[str, ...]) -> dict[str, str]:
        """The secrets by name; those that are not there yet are generated."""
        known = self.secrets()
        fresh = {name: secrets.token_urlsafe(_SECRET_BYTES) for name in names if name not in known}
        if fresh:
            self.write("secrets.json", known | fresh)
        return known | fresh

    def renew_secret(self, name: str) -> str:
        """A fresh secret in the place of the one before."""
        fresh = secrets.token_urlsafe(_SECRET_BYTES)
        self.write("secrets.json", self.secrets() | {name: fresh})
        return fresh

    def first_key(self, name: str) -> str:
        """A key that control wrote at the first start: "api_key" or "admin_key"."""
        try:
            return str(json.loads(self.keys_file.read_text(encoding="utf-8"))[name])
        except (OSError, ValueError, KeyError) as error:
            raise StackError(f"the first keys cannot be read from {self.keys_file}: {error}") from error

    def ports(self) -> dict[str, int]:
        """The ports of the run before."""
        return {name: int(port) for name, port in self._kept("ports.json").items()}

    def read_run(self) -> dict[str, Any]:
        """The last supervisor's run file; empty when there was none."""
        return self._kept("run.json")

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Writes the run file."""
        self.write("run.json", run)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Replaces a file at once; it is private, as it may hold secrets."""
        fresh = self.folder / f"{name}.new"
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(value, file)
            fresh.rename(self.folder / name)
        except OSError as error:
            raise StackError(f"{self.folder / name} cannot be written: {error.strerror}") from error

    def holder(self) -> int | None:
        """The pid of the supervisor that holds the folder; None when there is none."""
        try:
            with open(self.folder / "lock", "r+", encoding="ascii") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(lock.read() or 0)
        except OSError:
            return None
        return None

    def beat(self) -> None:
        """A sign of life of the supervisor, for `uplion status`."""
        with suppress(OSError):  # a full disk must not end what still runs
            os.utime(self.folder / "run.json")

    def silent_seconds(self) -> float:
        """Since the supervisor's last one."""
        try:
            return max(0.0, time.time() - (self.folder / "run.json").stat().st_mtime)
        except OSError:
            return 0.0

    def bound_logs(self) -> None:
        """Keeps every log under its bound; writers append, so they go on at the start of the emptied file."""
        for log in self.logs.glob("*.log"):
            if log.stat().st_size > LOG_BYTES_MAX:
                with open(log, "rb") as file:
                    file.seek(-LOG_BYTES_MAX // 2, os.SEEK_END)
                    log.with_suffix(".log.1").write_bytes(file.read())
                os.truncate(log, 0)

    def _kept(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StackError(f"{self.folder / name} cannot be read: {error}") from error
        return value if isinstance(value, dict) else {}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
