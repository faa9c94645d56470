"""authz as it really runs, with real Postgres, Valkey and NATS, and a gRPC client in Envoy's place."""

import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc.aio
import nats
import pytest
from envoy.service.auth.v3 import external_auth_pb2 as auth

from authz.app import main
from authz.settings import AuthzSettings
from common import names
from common.operations import FACTS_NAMESPACE
from control.schema.migrate import migrate
from credentials import api_keys
from ledger.limits import Limit
from tests.integration.authz.rules import as_json
from tests.kit import services
from tests.kit.proof import PROOF_KEYS
from tests.kit.until import until

PEPPER = b"test pepper"
CHECK = "/envoy.service.auth.v3.Authorization/Check"


@dataclass
class Answer:
    """A CheckResponse, or the RPC error in its place."""

    response: auth.CheckResponse | None
    error: grpc.StatusCode | None = None
    request_id: str = ""

    @property
    def status(self) -> int:
        """The HTTP status the client will see."""
        if self.response is None:
            return 503
        return int(self.response.denied_response.status.code) or 200

    @property
    def headers(self) -> dict[str, str]:
        assert self.response is not None
        options = self.response.denied_response.headers or self.response.ok_response.headers
        return {option.header.key: option.header.value for option in options}

    @property
    def told(self) -> dict[str, str]:
        assert self.response is not None
        return {each.header.key: each.header.value for each in self.response.ok_response.response_headers_to_add}

    @property
    def limits(self) -> dict[str, str]:
        """The limits that the router gets, without the deadline, which every request has."""
        parts = dict(part.split("=", 1) for part in self.headers["x-uplion-limits"].split(";"))
        assert parts.pop("deadline_seconds") == "600"
        return parts

    @property
    def error_text(self) -> str:
        assert self.response is not None
        return str(json.loads(self.response.denied_response.body)["error"]["message"])

    @property
    def code(self) -> str:
        assert self.response is not None
        return str(json.loads(self.response.denied_response.body)["error"]["code"])


@dataclass
class Authz:
    """The running service, and the database behind it."""

    address: str
    channel: grpc.aio.Channel
    database: asyncpg.Connection
    account: str = field(default_factory=lambda: f"a-{uuid.uuid4().hex[:10]}")

    async def until_status(self, key: str, status: int, seconds: float = 60.0) -> None:
        """Asks until a check of the key is answered so."""

        async def answered() -> bool:
            return bool((await self.check(key)).status == status)

        await until(answered, seconds)

    async def check(
        self,
        key: str | None = None,
        *,
        path: str = "/v1/chat/completions",
        method: str = "POST",
        listener: str | None = names.LISTENER_PUBLIC,
        size: int = 300,
        model: str = "m",
        facts: dict[str, float | str] | None = None,
        headers: dict[str, str] | None = None,
        seconds: float = 60.0,
    ) -> Answer:
        request = auth.CheckRequest()
        http = request.attributes.request.http
        http.method, http.path, http.size = method, path, size
        http.headers["content-type"] = "application/json"
        http.headers["x-uplion-model"] = model
        http.headers["x-request-id"] = request_id = uuid.uuid4().hex
        if key is not None:
            http.headers["authorization"] = f"Bearer {key}"
        for name, value in (headers or {}).items():
            http.headers[name] = value
        for name, fact in (facts or {}).items():
            field = request.attributes.metadata_context.filter_metadata[FACTS_NAMESPACE].fields[name]
            if isinstance(fact, str):
                field.string_value = fact
            else:
                field.number_value = fact
        call: Any = self.channel.unary_unary(CHECK, auth.CheckRequest.SerializeToString, auth.CheckResponse.FromString)
        metadata = () if listener is None else ((names.HEADER_LISTENER, listener),)
        try:
            return Answer(await call(request, metadata=metadata, timeout=seconds), request_id=request_id)
        except grpc.aio.AioRpcError as error:
            return Answer(None, error.code())

    async def add_account(self, *limits: Limit) -> None:
        await self.database.execute(
            "INSERT INTO accounts (id, name, limits) VALUES ($1, $1, $2)", self.account, as_json(limits)
        )

    async def add_project(self, *limits: Limit, name: str = "p") -> str:
        project = f"{name}-{self.account}"
        await self.database.execute(
            "INSERT INTO projects (id, account, name, limits) VALUES ($1, $2, $1, $3)",
            project,
            self.account,
            as_json(limits),
        )
        return project

    async def add_key(self, *limits: Limit, expires_in: float | None = None, **columns: Any) -> api_keys.ApiKey:
        """`columns` as the table has them: scopes, project, models, tiers, networks, and what else there is."""
        key = api_keys.generate()
        row = {
            "id": key.id,
            "account": self.account,
            "scopes": ["inference"],
            "limits": as_json(limits),
            "digest": api_keys.digest(key.secret, PEPPER),
            "pepper_id": "p1",
            "last_four": "abcd",
            **columns,
        }
        if expires_in is not None:
            row["expire_time"] = datetime.now(UTC) + timedelta(seconds=expires_in)
        marks = ", ".join(f"${number + 1}" for number in range(len(row)))
        await self.database.execute(f"INSERT INTO keys ({', '.join(row)}) VALUES ({marks})", *row.values())
        return key

    async def set_limits(self, table: str, name: str, *limits: Limit) -> None:
        await self.database.execute(f"UPDATE {table} SET limits = $2 WHERE id = $1", name, as_json(limits))

    async def end(self, answer: Answer, tokens: int) -> None:
        """The ledger has an admitted request's last event."""
        await self.database.execute("SELECT ensure_usage_partition(date_trunc('month', now())::date)")
        await self.database.execute(
            """INSERT INTO usage_events (request_id, attempt, month, account, key, model, model_served, model_revision,
                   provider, lane, tier, operation, status, finish_reason, error_reason, input_tokens, cached_tokens,
                   output_tokens, reasoning_tokens, end_time, last, reservation)
               VALUES ($1, 1, date_trunc('month', now()), $2, $3, 'm', 'm', 1,
                   'p', 'l', 't', 'chat', 'completed', '', '', $4, 0,
                   0, 0, now(), true, $5)""",
            answer.request_id,
            self.account,
            answer.headers["x-uplion-key"],
            tokens,
            answer.headers["x-uplion-reservation"],
        )

    async def use(self, scope: str, tokens: int, *, model: str = "", period: str = "life") -> None:
        """What the ledger has."""
        await self.database.execute(
            "INSERT INTO balances (account, scope, model, period, tokens, requests) VALUES ($1, $2, $3, $4, $5, 1)",
            self.account,
            scope,
            model,
            period,
            tokens,
        )


@pytest.fixture
async def database(postgres_database: str) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    connection = await asyncpg.connect(postgres_database)
    await migrate(connection)
    yield postgres_database, connection
    await connection.close()


@asynccontextmanager
async def running(settings: AuthzSettings, connection: asyncpg.Connection) -> AsyncIterator[Authz]:
    async with services.running(main, settings) as authz, grpc.aio.insecure_channel(authz.address) as channel:
        yield Authz(authz.address, channel, connection)


@pytest.fixture
def settings(database: tuple[str, asyncpg.Connection], redis_url: str, nats_url: str) -> AuthzSettings:
    return AuthzSettings(
        postgres_url=database[0],
        redis_url=redis_url,
        nats_url=nats_url,
        peppers=(f"p1:{PEPPER.decode()}",),
        proof_keys=PROOF_KEYS,
        limits_seconds=30.0,  # no busy machine reaches it
        lookup_seconds=30.0,
        unknown_ttl_seconds=60.0,
    )


@pytest.fixture
async def authz(settings: AuthzSettings, database: tuple[str, asyncpg.Connection]) -> AsyncIterator[Authz]:
    async with running(settings, database[1]) as found:
        yield found


@pytest.fixture
async def announce(nats_url: str) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Publishes an invalidation as control does."""
    connection = await nats.connect(nats_url)

    async def publish(what: str) -> None:
        await connection.publish(names.SUBJECT_INVALIDATE, what.encode())
        await connection.flush()

    yield publish
    await connection.close()


@pytest.fixture
def start(database: tuple[str, asyncpg.Connection]) -> Callable[..., Any]:
    """Another authz with other settings: `async with start(settings) as authz`."""
    return lambda settings, **changes: running(replace(settings, **changes), database[1])
