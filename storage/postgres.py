"""Postgres: a pool whose every operation has a deadline, and waiting for the schema that control migrates."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

_CLOSE_SECONDS = 5.0


@asynccontextmanager
async def connect_pool(
    url: str, *, least: int = 1, most: int = 4, command_seconds: float = 10.0
) -> "AsyncIterator[asyncpg.Pool[asyncpg.Record]]":
    """A pool; connections are made on demand beyond `least`, so a database that is down fails calls, not the start."""
    pool = asyncpg.create_pool(
        url,
        min_size=0 if least == 0 else least,
        max_size=most,
        command_timeout=command_seconds,
        timeout=command_seconds,
        max_inactive_connection_lifetime=300,
    )
    try:
        await pool
        yield pool
    finally:
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await pool.close()
        except TimeoutError:
            pool.terminate()


async def wait_for_schema(pool: "asyncpg.Pool[asyncpg.Record]", version: int, *, seconds: float = 60.0) -> None:
    """Returns once control has migrated the database to `version` or later; raises TimeoutError naming both."""
    found: int | None = None
    problem: Exception | None = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    found = await pool.fetchval("SELECT max(version) FROM schema_version")
                except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as caught:
                    found, problem = None, caught
                if found is not None and found >= version:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        message = f"the database is at schema {found}, {version} is needed: is control running?"
        raise TimeoutError(message) from (problem if found is None else None)
