"""What can be set on the router."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from common.settings import setting


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Limits and addresses of one router."""

    PREFIX: ClassVar[str] = "ROUTER"

    nats_url: str = setting(
        doc="NATS with JetStream, credentials in the URL; while it is away new requests get 503",
        env="NATS_URL",
        secret=True,
    )
    proof_keys: tuple[str, ...] = setting(
        doc="<id>:<secret> of each key that may have proven a caller's identity, comma separated, as authz has them",
        env="UPLION_PROOF_KEYS",
        secret=True,
    )
    listen: str = setting("127.0.0.1:0", doc="host:port or unix:/path of the gRPC server; port 0 takes a free one")
    request_bytes: int = setting(
        4 << 20, doc="bytes of a request body; larger ones are refused (the edge refuses first)"
    )
    queue_seconds: float = setting(60.0, doc="seconds a request may wait for a free slot; then 503 overloaded")
    model_loading_seconds: float = setting(
        30.0, doc="seconds a request waits while its model has no worker at all; then 503 model_loading"
    )
    deadline_seconds: float = setting(600.0, doc="seconds for a whole request where its limits name none; then 504")
    publish_seconds: float = setting(0.9, doc="seconds for JetStream to take a ticket; then 503, retry after 1 s")
    worker_idle_seconds: float = setting(
        120.0,
        doc="seconds without any event of a run, though its worker lives, before it is lost (a long prefill is silent)",
    )
    worker_silent_seconds: float = setting(
        12.0,
        doc="seconds without a heartbeat (one comes every 3 s) or any event of a worker before all its runs are lost",
    )
    stream_keepalive_seconds: float = setting(
        5.0,
        doc="seconds of silence before a stream's reader gets a comment line; errors before it keep their HTTP status",
    )
    attempts: int = setting(3, doc="workers tried for one request before it fails with 502")
    pending_bytes: int = setting(
        1 << 18, doc="bytes of answer held for a reader slower than the engine; beyond it the engine is held back"
    )
    spool_dir: Path | None = setting(
        None,
        doc="folder for usage events that NATS does not take; unset: they wait in memory, and die with the process",
    )
    spool_bytes: int = setting(256 << 20, doc="most bytes in that folder; requests are refused beyond four fifths")
    usage_pending: int = setting(
        100_000, doc="usage events held in memory while they can be neither sent nor spooled; then the oldest are lost"
    )
    usage_remembered: int = setting(
        20_000, doc="ended attempts kept to publish their usage when their worker dies before it did; about 1 kB each"
    )
    drain_seconds: float = setting(0.5, doc="seconds NOT_SERVING before refusing calls, for balancers to notice")
    grace_seconds: float = setting(30.0, doc="seconds for running calls to finish at the end; then they are cut off")
