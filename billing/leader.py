"""Leader election among the billing processes, by a Postgres advisory lock, and the periodic jobs of the leader."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import SystemRandom

import asyncpg

from billing import metrics
from common.lifecycle import not_cancelled, sleep_unless_cancelled

logger = logging.getLogger(__name__)

_LOCK = 0x6C656164  # "lead"; any constant that every billing process shares
_POLL_SECONDS = 2.0  # between two attempts to take the lock, and between two checks that it is still held
_STATEMENT_SECONDS = 5.0
_random = SystemRandom()  # jitter
_DATABASE_PROBLEMS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


@dataclass(frozen=True, slots=True)
class Duty:
    """A periodic job of the leader. It may raise, and it may be cancelled at any await and run again from the start."""

    name: str
    every_seconds: float
    action: Callable[[], Awaitable[object]]


async def lead(postgres_url: str, duties: Sequence[Duty]) -> None:
    """Waits for the lock and runs the duties while it is held; never returns.

    The lock ends with its connection, so for a moment two processes may lead: every duty is safe to run twice at once.
    """
    while not_cancelled():
        try:
            connection = await asyncpg.connect(
                postgres_url, timeout=_STATEMENT_SECONDS, command_timeout=_STATEMENT_SECONDS
            )
            try:
                await _acquire(connection)
                await _run_duties(connection, duties)
            finally:
                connection.terminate()  # Postgres releases the lock with the connection
        except _DATABASE_PROBLEMS as problem:
            logger.warning("no longer leading, or not yet", extra={"problem": repr(problem)})
        await sleep_unless_cancelled(_POLL_SECONDS * _random.uniform(0.5, 1.0))


async def _acquire(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Takes the lock by polling, since a blocking wait would hold a transaction open."""
    while True:
        if await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _run_duties(connection: "asyncpg.Connection[asyncpg.Record]", duties: Sequence[Duty]) -> None:
    """Returns once the lock is lost."""
    logger.info("leading")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_repeat(duty), name=f"billing {duty.name}") for duty in duties]
        metrics.BILLING_LEADER.set(1)
        try:
            while not_cancelled():
                await asyncio.sleep(_POLL_SECONDS)
                await connection.execute("SELECT 1")
        except _DATABASE_PROBLEMS as problem:
            logger.warning("the lead is lost", extra={"problem": repr(problem)})
        finally:
            metrics.BILLING_LEADER.set(0)
            for task in tasks:
                task.cancel()


async def _repeat(duty: Duty) -> None:
    while not_cancelled():
        try:
            await duty.action()
        except Exception as problem:  # a task boundary: the failure of a duty does not end the others
            metrics.BILLING_DUTY_FAILURES.labels(duty.name).inc()
            logger.warning("duty failed, trying again later", extra={"duty": duty.name, "problem": repr(problem)})
        await sleep_unless_cancelled(duty.every_seconds)
