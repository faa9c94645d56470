"""A running control service and the stubs to call it with."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import grpc.aio
import pytest
from uplion.control.v1.account_service_pb2_grpc import AccountServiceStub
from uplion.control.v1.key_service_pb2_grpc import KeyServiceStub
from uplion.control.v1.model_service_pb2_grpc import ModelServiceStub
from uplion.control.v1.project_service_pb2_grpc import ProjectServiceStub
from uplion.control.v1.usage_service_pb2_grpc import UsageServiceStub

from common.errors import UplionError, from_rpc_error
from common.names import HEADER_ACCOUNT, HEADER_KEY, HEADER_SCOPES, SCOPE_ADMIN
from control.app import main
from control.settings import ControlSettings
from messaging.bus import Bus, connect_bus
from tests.kit.proof import PROOF_KEYS, ProvenChannel
from tests.kit.services import running

Metadata = tuple[tuple[str, str], ...]
PEPPERS = ("2:pepper of the tests", "1:pepper of the past")


def by(*scopes: str, account: str = "default") -> Metadata:
    """What authz says of a caller whose key has these scopes."""
    return ((HEADER_ACCOUNT, account), (HEADER_KEY, "0123456789ab"), (HEADER_SCOPES, " ".join(scopes)))


CALLER = by(SCOPE_ADMIN)
_CALL_SECONDS = 60.0


@dataclass
class Control:
    """A control service under test."""

    address: str
    channel: Any
    accounts: Any = field(init=False)
    keys: Any = field(init=False)
    models: Any = field(init=False)
    projects: Any = field(init=False)
    usage: Any = field(init=False)

    async def call(self, method: Any, request: Any, metadata: Metadata = CALLER) -> Any:
        """Calls as the gateway would for an admin."""
        return await method(request, metadata=metadata, timeout=_CALL_SECONDS)

    async def refusal(self, method: Any, request: Any, metadata: Metadata = CALLER) -> UplionError:
        """The error it answers with."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, request, metadata)
        return from_rpc_error(caught.value)

    def __post_init__(self) -> None:
        self.accounts = AccountServiceStub(self.channel)
        self.keys = KeyServiceStub(self.channel)
        self.models = ModelServiceStub(self.channel)
        self.projects = ProjectServiceStub(self.channel)
        self.usage = UsageServiceStub(self.channel)


@asynccontextmanager
async def run_control(settings: ControlSettings) -> AsyncIterator[Control]:
    async with running(main, settings) as service, grpc.aio.insecure_channel(service.address) as channel:
        yield Control(service.address, ProvenChannel(channel))


@pytest.fixture
def settings(postgres_database: str, nats_url: str) -> ControlSettings:
    return ControlSettings(
        postgres_url=postgres_database, nats_url=nats_url, peppers=PEPPERS, proof_keys=PROOF_KEYS, grace_seconds=1.0
    )


@pytest.fixture
async def control(settings: ControlSettings) -> AsyncIterator[Control]:
    async with run_control(settings) as started:
        yield started


@pytest.fixture
def start_control() -> Callable[[ControlSettings], AbstractAsyncContextManager[Control]]:
    """Runs control with settings of the test's own."""
    return run_control


@pytest.fixture
async def database(settings: ControlSettings) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    connection = await asyncpg.connect(settings.postgres_url)
    yield connection
    await connection.close()


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    async with connect_bus(nats_url, "test") as connected:
        yield connected
