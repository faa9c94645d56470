"""What can be chosen about a local stack."""

import os
from dataclasses import dataclass
from pathlib import Path

PORT_DEFAULT = 8080


def default_state() -> Path:
    """Where a user's stack lives unless --state is given: under the XDG state folder."""
    return _user_folder("XDG_STATE_HOME", ".local/state")


def default_cache() -> Path:
    """What a user's stacks share and may lose: under the XDG cache folder."""
    return _user_folder("XDG_CACHE_HOME", ".cache")


def _user_folder(variable: str, beneath_home: str) -> Path:
    base = os.environ.get(variable, "")
    return (Path(base) if os.path.isabs(base) else Path.home() / beneath_home) / "uplion"


def default_manifest() -> Path:
    """The demo model of this checkout."""
    return Path(__file__).resolve().parent.parent / "models/demo.yaml"


@dataclass(frozen=True, slots=True)
class StackSettings:
    """One local stack."""

    state: Path  # folder that holds everything; made when absent
    port: int = PORT_DEFAULT  # of the public listener, on loopback; 0 takes a free one
    manifests: tuple[Path, ...] = ()  # AIModel files to apply at start
    postgres_url: str | None = None  # None: an embedded one
    redis_url: str | None = None  # None: an embedded one
    nats_url: str | None = None  # None: an embedded one
    processes: int = 1  # of authz, and of the router
    grace_seconds: float = 30.0  # how long running requests may take when it stops
    log_level: str = "info"  # of our own processes
