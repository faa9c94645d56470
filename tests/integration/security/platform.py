"""Envoy, authz, router and control as they are deployed, on the session's servers.

There is no worker, and no model: a request that passes every check ends as 404.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc

from tests.integration.edge.envoys import PATIENCE_SECONDS, EdgeProcess, Reply, edge_settings, raw, request
from tests.integration.security.issuer import Issuer

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


class Services:
    """`python -m stack.services` with some services; each announces its address when it is ready."""

    def __init__(self, names: tuple[str, ...], environment: Mapping[str, str], folder: Path) -> None:
        self.log = folder / f"{'-'.join(names)}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stack.services", *names],
                env={**os.environ, **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.ports = self._ports(names)

    def _ports(self, names: tuple[str, ...]) -> dict[str, int]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        found: dict[str, int] = {}
        while found.keys() < set(names):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{names} did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)
            for line in self.log.read_text().splitlines():
                if '"ready"' in line:
                    told = json.loads(line)
                    found[told["service"]] = int(told["address"].rpartition(":")[2])
        return found

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Platform:
    """The running platform, and how to talk to it."""

    folder: Path
    database_url: str
    edge: EdgeProcess
    authz: Services
    others: Services
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

    def channel(self) -> grpc.Channel:
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


def start(postgres_url: str, redis_url: str, nats_url: str, issuer: Issuer, folder: Path, cache: Path) -> Platform:
    database_url = asyncio.run(_database(postgres_url))
    (folder / "issuers.yaml").write_text(ISSUERS.format(url=issuer.url))
    environment = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "NATS_URL": nats_url,
        "UPLION_PEPPERS": f"1:{PEPPER}",
        "UPLION_CONTROL_BOOTSTRAP_FILE": str(folder / "keys.json"),
        "UPLION_AUTHZ_ISSUERS_FILE": str(folder / "issuers.yaml"),
        "UPLION_AUTHZ_KEY_TTL_SECONDS": str(KEY_TTL_SECONDS),
        "UPLION_AUTHZ_LIMITS_SECONDS": "20",
        "UPLION_AUTHZ_LOOKUP_SECONDS": "20",
    }
    others = Services(("control", "router"), environment, folder)
    authz = Services(("authz",), environment, folder)
    edge_folder = folder / "edge"
    edge_folder.mkdir()
    settings = edge_settings(
        authz.ports["authz"],
        others.ports["router"],
        edge_folder,
        control_endpoints=(f"127.0.0.1:{others.ports['control']}",),
        tokens=True,
    )
    edge = EdgeProcess(settings, edge_folder, cache)
    keys = json.loads((folder / "keys.json").read_text())
    return Platform(folder, database_url, edge, authz, others, keys, environment, issuer)


async def _database(postgres_url: str) -> str:
    name = f"security_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(f'CREATE DATABASE "{name}"')
    await connection.close()
    return f"{postgres_url.rpartition('/')[0]}/{name}"
