"""Child processes that never outlive their parent, in the foreground or as root.

Children are started with a parent-death signal, in a session of their own (so that Ctrl-C reaches only the
supervisor, which then ends them in order), and are waited for by pidfd: no threads, no SIGCHLD handler.
"""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stack.children.exit_reason import exit_reason
from stack.errors import StackError

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_FILES = 65_536  # the usual soft limit of 1,024 is less than an edge's connections
_INNER_USER_ID = 1000  # any id but 0: what root is called inside the namespace


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, and how it ends."""

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    output: Path | None = None  # where stdout goes; None: into the log
    stop_signal: signal.Signals = signal.SIGTERM  # asks it to finish
    death_signal: signal.Signals = signal.SIGKILL  # what it gets when its parent vanishes
    not_as_root: bool = False  # refuses to run as root, so root becomes another id in a user namespace (ADR 4)


def base_environment() -> dict[str, str]:
    """The few variables every child needs; nothing else of the caller's environment leaks into servers."""
    names = ("PATH", "HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
    return {"LANG": "C", **{name: os.environ[name] for name in names if name in os.environ}}


class Process:
    """One running child."""

    def __init__(self, program: Program, popen: subprocess.Popen[bytes], log_start_bytes: int) -> None:
        self.program = program
        self.pid = popen.pid
        self.started_at = time.time()
        self._popen = popen
        self._log_start_bytes = log_start_bytes
        self.heard_at = time.monotonic()  # its last heartbeat
        self.troubles: Mapping[str, str] = {}  # what fails in it and is started again, by its own word: name, why

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._popen.poll()

    async def wait(self) -> int:
        """Waits until it has ended."""
        if (code := self._popen.poll()) is not None:
            return code
        ended = asyncio.Event()
        with self.at_end(ended.set):
            await ended.wait()
        return self._popen.wait()

    @contextlib.contextmanager
    def at_end(self, callback: Callable[[], None]) -> Iterator[None]:
        """Calls back, perhaps more than once, when it ends within the block."""
        loop = asyncio.get_running_loop()
        descriptor = os.pidfd_open(self.pid)
        loop.add_reader(descriptor, callback)
        try:
            yield
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; a process that has ended already is no error."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(number)

    async def stop(self, grace_seconds: float) -> None:
        """Asks it to finish, and kills it after the grace."""
        if self.returncode is not None:
            return
        self.signal(self.program.stop_signal)
        try:
            async with asyncio.timeout(grace_seconds):
                await self.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.wait()
        except asyncio.CancelledError:
            self.signal(signal.SIGKILL)
            raise

    def kill(self) -> None:
        """Ends it at once and collects it."""
        self.signal(signal.SIGKILL)
        self._popen.wait()

    def why_it_ended(self) -> str:
        """Its exit code and last words."""
        code = self.returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        words = self.last_words()
        return f"{how}: {words}" if words else how

    def last_words(self) -> str:
        """The last error in its log, in one line; empty when there is none."""
        return exit_reason(self.program.log, self._log_start_bytes)


@contextlib.contextmanager
def killed_on_failure(process: Process) -> Iterator[None]:
    """Kills the process when the block raises or is cancelled."""
    with contextlib.ExitStack() as undo:
        undo.callback(process.kill)
        yield
        undo.pop_all()


def spawn(program: Program) -> Process:
    """Starts a child; raises StackError when it cannot be started at all."""
    if not (binary := Path(program.argv[0])).exists():
        raise StackError(f"{program.name} cannot start: the program {binary} is missing; run `make setup` again")
    try:
        with contextlib.ExitStack() as files, warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads (tests have some); before exec we only call the kernel.
            warnings.simplefilter("ignore", DeprecationWarning)
            log = files.enter_context(open(program.log, "ab", buffering=0))
            log_start_bytes = os.fstat(log.fileno()).st_size
            popen = subprocess.Popen(  # noqa: S603 - our own programs
                program.argv,
                env=dict(program.env) or base_environment(),
                stdin=subprocess.DEVNULL,
                stdout=files.enter_context(open(program.output, "wb")) if program.output else log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_before_exec(program),
            )
    except subprocess.SubprocessError as error:
        raise StackError(_namespace_forbidden(program.name)) from error
    except PermissionError as error:
        raise StackError(_not_permitted(program, error)) from error
    except OSError as error:
        raise StackError(
            f"{program.name} cannot start: {error.strerror or error}: {error.filename or binary}"
        ) from error
    return Process(program, popen, log_start_bytes)


def _before_exec(program: Program) -> Callable[[], None]:
    parent = os.getpid()
    user_id, group_id = os.geteuid(), os.getegid()
    in_namespace = program.not_as_root and user_id == 0
    death_signal = int(program.death_signal)
    files = _file_limits()

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
        if in_namespace:
            if _LIBC.unshare(_CLONE_NEWUSER) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            _write("/proc/self/uid_map", f"{_INNER_USER_ID} {user_id} 1")
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/gid_map", f"{_INNER_USER_ID} {group_id} 1")
        _LIBC.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before the line above
            os._exit(1)

    return prepare


def _file_limits() -> tuple[int, int]:
    """How many files a child may open, soft and hard: as many as the system allows, up to a bound."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return soft, hard
    return max(soft, _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)), hard


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def _namespace_forbidden(name: str) -> str:
    return (
        f"{name} refuses to run as root, and this system forbids the user namespace that would give it another id;"
        " run uplion as an ordinary user, or give --postgres-url"
    )


def _not_permitted(program: Program, error: PermissionError) -> str:
    if program.not_as_root and os.geteuid() == 0:
        return (
            f"{program.name} runs without root's powers and may not open {error.filename or program.argv[0]};"
            " run uplion as the owner of that folder, or give --postgres-url"
        )
    return f"{program.name} cannot start: no permission for {error.filename or program.argv[0]}"


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours, whatever the working folder holds."""
    return [sys.executable, "-P", "-m", module, *arguments]
