"""Settings of the fleet."""

from dataclasses import dataclass
from typing import ClassVar

from common.settings import setting


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """Environment variables UPLION_FLEET_*."""

    PREFIX: ClassVar[str] = "FLEET"
    nats_url: str = setting(doc="NATS, which holds the manifests", env="NATS_URL", secret=True)
    drain_grace_seconds: float = setting(30.0, doc="how long the running requests of a stopped worker may take")
