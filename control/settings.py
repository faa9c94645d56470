"""Settings of control."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from common.settings import setting


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """UPLION_CONTROL_*"""

    PREFIX: ClassVar[str] = "CONTROL"
    postgres_url: str = setting(
        doc="the platform's database; while it is away calls get UNAVAILABLE", env="DATABASE_URL", secret=True
    )
    nats_url: str = setting(
        doc="NATS: holds the models and carries invalidations; while it is away model calls get UNAVAILABLE",
        env="NATS_URL",
        secret=True,
    )
    peppers: tuple[str, ...] = setting(
        doc="<id>:<secret> of each pepper, comma separated, as authz has them; the first makes the digests of new keys",
        env="UPLION_PEPPERS",
        secret=True,
    )
    proof_keys: tuple[str, ...] = setting(
        doc="<id>:<secret> of each key that may have proven a caller's identity, comma separated, as authz has them",
        env="UPLION_PROOF_KEYS",
        secret=True,
    )
    listen: str = setting("127.0.0.1:0", doc="host:port or unix:/path of the admin API; port 0 takes a free one")
    key_environment: str = setting("live", doc="second part of new keys: 1 to 8 letters a-z")
    bootstrap_file: Path | None = setting(
        None, doc="where the first keys are written, once, readable by the owner only; unset: no first keys are made"
    )
    database_seconds: float = setting(60.0, doc="seconds to wait at start for the database; then it fails")
    drain_seconds: float = setting(0.0, doc="seconds NOT_SERVING before refusing calls, for balancers to notice")
    grace_seconds: float = setting(10.0, doc="seconds for running calls to finish at the end; then they are cut off")
