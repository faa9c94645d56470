"""The database schema: numbered, forward-only migrations, applied once each under an advisory lock."""

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import asyncpg

logger = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_LOCK = 0x75706C696F6E  # "uplion"; any constant that every control process shares
_STATEMENT_SECONDS = 600.0  # a migration may rewrite a large table, and others wait for its lock that long


class SchemaError(Exception):
    """The migrations on disk do not match those that were applied."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations(folder: Path = MIGRATIONS) -> list[Migration]:
    """The steps in order; raises SchemaError when a number is missing or double."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise SchemaError(f"{path.name}: a migration is named NNNN_what_it_does.sql")
        found.append(Migration(int(match[1]), match[2], path.read_text(encoding="utf-8")))
    for expected, migration in enumerate(found, start=1):
        if migration.version != expected:
            raise SchemaError(f"migration {expected:04d} is missing, or {migration.version:04d} is there twice")
    return found


async def migrate(connection: asyncpg.Connection, steps: list[Migration] | None = None) -> int:
    """Brings the database to the newest version and returns it. Safe to run twice, and by many processes at once.

    All steps share one transaction: either the database has the newest schema afterwards, or it is untouched.
    """
    steps = migrations() if steps is None else steps
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK, timeout=_STATEMENT_SECONDS)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_version (version integer PRIMARY KEY, name text NOT NULL,"
            " checksum text NOT NULL, apply_time timestamptz NOT NULL DEFAULT now())"
        )
        rows = await connection.fetch("SELECT version, checksum FROM schema_version")
        applied = {row["version"]: row["checksum"] for row in rows}
        for step in steps:
            if step.version in applied:
                if applied[step.version] != step.checksum:
                    raise SchemaError(f"migration {step.version:04d}_{step.name} was changed after it was applied")
                continue
            await connection.execute(step.sql, timeout=_STATEMENT_SECONDS)
            await connection.execute(
                "INSERT INTO schema_version (version, name, checksum) VALUES ($1, $2, $3)",
                step.version,
                step.name,
                step.checksum,
            )
            logger.info("migration applied", extra={"version": step.version, "migration": step.name})
    return max([step.version for step in steps] + list(applied), default=0)
