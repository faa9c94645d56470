"""Settings of the fleet."""

from dataclasses import dataclass
from typing import ClassVar

from common.settings import setting


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """Environment variables UPLION_FLEET_*."""

    PREFIX: ClassVar[str] = "FLEET"
    nats_url: str = setting(
        doc="NATS, which holds the manifests; while it is away workers run on unchanged", env="NATS_URL", secret=True
    )
    drain_grace_seconds: float = setting(
        30.0, doc="seconds for the running requests of a stopped worker to finish; then they are cut off"
    )
