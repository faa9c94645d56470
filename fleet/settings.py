"""Settings of the fleet."""

from dataclasses import dataclass
from typing import ClassVar

from common.settings import setting


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """UPLION_FLEET_*"""

    PREFIX: ClassVar[str] = "FLEET"
    nats_url: str = setting(doc="where the manifests are kept", env="NATS_URL", secret=True)
    drain_grace_seconds: float = setting(30.0, doc="how long a worker's running requests may take when it is ended")
