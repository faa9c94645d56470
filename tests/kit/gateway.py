"""Envoy, authz, router and control as they are deployed, on the session's servers.

There is no worker, and no model: a request that passes every check ends as 404.
"""

import asyncio
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc

from tests.kit.envoy import PATIENCE_SECONDS, EdgeProcess, Reply, edge_settings, raw, request
from tests.kit.issuer import Issuer
from tests.kit.proof import PROOF_KEYS
from tests.kit.services import ServiceProcess

PEPPER = "a pepper that must not be found in any log"
KEY_TTL_SECONDS = 3
ISSUERS = """
issuers:
  - issuer: {url}
    audiences: [uplion]
    authorized_parties: [app]
    algorithms: [RS256]
    account: {{claim: [org, id]}}
    project: {{claim: project}}
    scopes: {{claim: scope, allowed: [inference, "admin:read"]}}
"""


@dataclass
class Gateway:
    """The running platform, and how to talk to it."""

    folder: Path
    database_url: str
    edge: EdgeProcess
    authz: ServiceProcess
    others: ServiceProcess
    keys: dict[str, str]
    environment: dict[str, str]
    issuer: Issuer

    @property
    def public(self) -> int:
        return self.edge.ports["public"]

    @property
    def admin(self) -> int:
        return self.edge.ports["admin"]

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        port: int | None = None,
        key: str | None = "api_key",
    ) -> Reply:
        """With a key by its name in the bootstrap file, or with `headers` of one's own."""
        text = None if key is None else self.keys.get(key, key)
        return request(port or self.public, method, path, body, headers, key=text)

    def chat(self, body: bytes, headers: dict[str, str] | None = None) -> Reply:
        return self.ask("POST", "/v1/chat/completions", body, headers)

    def raw(self, data: bytes, *, seconds: float = PATIENCE_SECONDS) -> bytes:
        return raw(self.public, data, seconds=seconds)

    def alive(self) -> bool:
        """Everything still runs, and a good request is answered."""
        running = [each.process.poll() for each in (self.edge, self.authz, self.others)]
        return running == [None] * 3 and self.ask("GET", "/v1/models").status == 200

    def channel(self) -> Any:
        """Calls without serializers; grpc's types know none."""
        return grpc.insecure_channel(f"127.0.0.1:{self.public}", options=[("grpc.enable_retries", 0)])

    def logs(self) -> str:
        """Everything that any process of the platform wrote so far."""
        return "".join(file.read_text(errors="replace") for file in self.folder.rglob("*.log"))

    def sql(self, query: str, *arguments: Any) -> list[Any]:
        """Past the admin API, so that nobody is told."""

        async def run() -> list[Any]:
            connection = await asyncpg.connect(self.database_url)
            try:
                return list(await connection.fetch(query, *arguments))
            finally:
                await connection.close()

        return asyncio.run(run())

    def stop(self) -> None:
        for each in (self.edge, self.authz, self.others):
            each.stop()


def start(postgres_url: str, redis_url: str, nats_url: str, issuer: Issuer, folder: Path, cache: Path) -> Gateway:
    database_url = asyncio.run(_database(postgres_url))
    (folder / "issuers.yaml").write_text(ISSUERS.format(url=issuer.url))
    environment = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "NATS_URL": nats_url,
        "UPLION_PEPPERS": f"1:{PEPPER}",
        "UPLION_PROOF_KEYS": ",".join(PROOF_KEYS),
        "UPLION_CONTROL_BOOTSTRAP_FILE": str(folder / "keys.json"),
        "UPLION_AUTHZ_ISSUERS_FILE": str(folder / "issuers.yaml"),
        "UPLION_AUTHZ_KEY_TTL_SECONDS": str(KEY_TTL_SECONDS),
        "UPLION_AUTHZ_LIMITS_SECONDS": "20",
        "UPLION_AUTHZ_LOOKUP_SECONDS": "20",
    }
    others = ServiceProcess("stack.services", "control", "router", environment=environment, folder=folder)
    authz = ServiceProcess("stack.services", "authz", environment=environment, folder=folder)
    edge_folder = folder / "edge"
    edge_folder.mkdir()
    settings = edge_settings(
        authz.port("authz"),
        others.port("router"),
        edge_folder,
        control_endpoints=(f"127.0.0.1:{others.port('control')}",),
        tokens=True,
    )
    edge = EdgeProcess(settings, edge_folder, cache)
    keys = json.loads((folder / "keys.json").read_text())
    return Gateway(folder, database_url, edge, authz, others, keys, environment, issuer)


async def _database(postgres_url: str) -> str:
    name = f"security_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(f'CREATE DATABASE "{name}"')
    await connection.close()
    return f"{postgres_url.rpartition('/')[0]}/{name}"
