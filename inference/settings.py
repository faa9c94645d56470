"""Settings of a worker."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from common.settings import setting


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """Environment variables of one worker, which serves one model."""

    PREFIX: ClassVar[str] = "INFERENCE"
    manifest: Path = setting(doc="file with the one AIModel this worker serves")
    nats_url: str = setting(
        doc="NATS, which holds the tickets; while it is away only what runs goes on", env="NATS_URL", secret=True
    )
    revision: int = setting(0, doc="revision of the manifest, as routers and the ledger see it")
    listen: str = setting("127.0.0.1:0", doc="host:port or unix:/path of WorkerService; port 0 takes a free one")
    advertise: str = setting(
        "",
        doc="what routers connect to: host:port, or unix:/path beside a router's own socket; empty: the bound one",
    )
    lane: str = setting("default", doc="lane whose tickets it takes; those of other lanes need workers of their own")
    threads: int = setting(0, doc="threads that compute; 0: one less than the CPUs, at least one")
    device: str = setting("auto", doc="cpu, cuda or auto; auto takes an accelerator where there is one")
    cache_bytes: int = setting(
        0, doc="bytes of the key-value cache on a CPU; 0: 128 tokens a slot, at most 256 MiB, at least one context"
    )
    drain_grace_seconds: float = setting(
        30.0, doc="seconds for running requests to finish on SIGTERM; then they are cut off"
    )
    spool_dir: Path | None = setting(
        None,
        doc="folder for usage events that NATS does not take; unset: they wait in memory and are lost with the process",
    )
    spool_bytes: int = setting(256 << 20, doc="most bytes in that folder; beyond four fifths no ticket is taken")
    upstream_url: str = setting(
        "", doc="base URL of the OpenAI-compatible upstream, for an engine that calls one", env="UPLION_UPSTREAM_URL"
    )
    upstream_key: str = setting("", doc="its API key", env="UPLION_UPSTREAM_KEY", secret=True)
    upstream_timeout_seconds: float = setting(60.0, doc="seconds of silence of the upstream before the request fails")
