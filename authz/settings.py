"""Settings of authz."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from common.settings import setting


@dataclass(frozen=True, slots=True)
class AuthzSettings:
    """UPLION_AUTHZ_*. Every wait of a check must end well before the edge's own timeout (0.25 s)."""

    PREFIX: ClassVar[str] = "AUTHZ"

    postgres_url: str = setting(
        doc="database of keys, accounts and balances; while it is away a key not in any cache gets 503",
        env="DATABASE_URL",
        secret=True,
    )
    redis_url: str = setting(
        doc="Valkey of limits and reservations; while it is away the local fallback decides",
        env="REDIS_URL",
        secret=True,
    )
    nats_url: str = setting(
        doc="NATS, which carries invalidations; while it is away a revocation takes effect after KEY_TTL_SECONDS",
        env="NATS_URL",
        secret=True,
    )
    peppers: tuple[str, ...] = setting(
        doc="<id>:<secret> of each pepper in use, comma separated", env="UPLION_PEPPERS", secret=True
    )
    proof_keys: tuple[str, ...] = setting(
        doc="<id>:<secret> of each key that proves callers' identities to router and control, comma separated; "
        "the first makes the proofs; a secret comes from `openssl rand -hex 32`",
        env="UPLION_PROOF_KEYS",
        secret=True,
    )
    issuers_file: Path | None = setting(
        None, doc="YAML or JSON file of the token issuers; unset: keys only. Set the edge's `tokens` with it"
    )
    issuer_refresh_seconds: float = setting(
        300.0, doc="seconds between two reads of an issuer's keys; one that it withdrew is accepted that much longer"
    )
    listen: str = setting("127.0.0.1:0", doc="host:port or unix:/path of the gRPC server that Envoy calls")

    limits_seconds: float = setting(0.08, doc="seconds for Valkey to answer one check; then the local fallback decides")
    lookup_seconds: float = setting(0.12, doc="seconds for Postgres to answer for a cold key; then 503")
    key_ttl_seconds: float = setting(
        60.0, doc="seconds a key is cached without another look-up; the longest that a revocation can take"
    )
    stale_seconds: float = setting(
        600.0, doc="seconds a known key still works while Postgres is down (nothing can be revoked then)"
    )
    unknown_ttl_seconds: float = setting(5.0, doc="seconds an unknown key is refused without another look-up")
    keys: int = setting(100_000, doc="known keys kept in memory, about 1 kB each; further ones are looked up again")
    unknown_keys: int = setting(50_000, doc="unknown key ids kept in memory, about 150 bytes each")
    lookups: int = setting(2_000, doc="cold keys looked up at once; more are answered with 503")
    postgres_connections: int = setting(4, doc="most connections to Postgres; further lookups wait for one")

    key_concurrency: int = setting(
        256, doc="requests at once of a key that has no such limit of its own; more are refused; 0: any number"
    )
    account_concurrency: int = setting(
        512, doc="the same of an account, over all its keys: half of what one router carried (docs/limits.md)"
    )
    release_seconds: float = setting(0.1, doc="seconds a request waits for a slot that its caller may just have left")
    default_output_tokens: int = setting(1024, doc="tokens reserved for an answer whose length the request leaves open")
    most_output_tokens: int = setting(131_072, doc="tokens reserved at most for one answer, whatever the request says")
    deadline_seconds: float = setting(
        600.0,
        doc="seconds a whole request may take, which the router enforces; after that its reservation is overdue",
    )
    reservation_seconds: float = setting(
        7200.0, doc="seconds after that until a reservation that was neither settled nor swept is given back"
    )
    outstanding: int = setting(200_000, doc="reservations kept for a Valkey that loses them, about 300 bytes each")
    prices_seconds: float = setting(60.0, doc="seconds after which prices are read again without an invalidation")
    outage_seconds: float = setting(60.0, doc="seconds known keys are served without Valkey; then 503")
    local_share: float = setting(
        0.25, doc="part of a limit one authz may spend alone while Valkey is down: 1 / replicas"
    )

    drain_seconds: float = setting(0.0, doc="seconds NOT_SERVING before refusing calls, for balancers to notice")
    grace_seconds: float = setting(5.0, doc="seconds for running checks to finish at the end; then they are cut off")
    schema_seconds: float = setting(
        60.0, doc="seconds to wait at start for control to migrate the database; then it fails"
    )
