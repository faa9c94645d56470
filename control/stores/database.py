"""Connections from the pool with a deadline; an unavailable database is an error that clients retry."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from common.errors import Reason, UplionError

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

logger = logging.getLogger(__name__)

QUERY_SECONDS = 5.0
_RETRY_SECONDS = 1.0
# The database is unreachable, full or shutting down: the same call may work later.
_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """Raises UNAVAILABLE for an unavailable database."""
    try:
        yield
    except _AWAY as problem:
        logger.warning("database is away", extra={"problem": repr(problem)})
        raise UplionError(
            Reason.UNAVAILABLE, "The database is not available; try again.", retry_after_seconds=_RETRY_SECONDS
        ) from problem


class Database:
    """The base of the stores in Postgres."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool

    @asynccontextmanager
    async def _connection(self, seconds: float = 2 * QUERY_SECONDS) -> AsyncIterator["Connection"]:
        """A connection for `seconds`, waiting for a free one included."""
        async with _translated():
            async with asyncio.timeout(seconds):
                async with self._pool.acquire(timeout=QUERY_SECONDS) as connection:
                    yield connection


def assignments(changes: Mapping[str, object], first: int) -> str:
    """`name = $3, state = $4`: columns are our own constants, values are parameters from number `first` on."""
    return ", ".join(f"{column} = ${number}" for number, column in enumerate(changes, start=first))


def found(row: "asyncpg.Record | None", kind: str, identifier: str) -> "asyncpg.Record":
    """The row; NOT_FOUND for none."""
    if row is None:
        raise UplionError(Reason.NOT_FOUND, f"There is no {kind} {identifier!r}.", param="id")
    return row
