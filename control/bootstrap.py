"""The first account and the first keys, so that a fresh platform can be used at all. Local stacks only."""

import hmac
import json
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from common import names
from control.services.account_service import ACCOUNT_DEFAULT
from credentials import api_keys

if TYPE_CHECKING:
    import asyncpg

logger = logging.getLogger(__name__)

_LOCK = 0x626F6F74  # "boot"; any constant that every control process shares
# The file's names, and what each key may do. An admin key cannot spend, and an inference key cannot administer.
_KEYS = {"api_key": names.SCOPE_INFERENCE, "admin_key": names.SCOPE_ADMIN}


async def bootstrap(
    connection: "asyncpg.Connection[asyncpg.Record]", file: Path, *, peppers: Mapping[str, bytes], environment: str
) -> None:
    """Ensures the account "default", an inference key and an admin key, and that `file` holds both keys' texts.

    Keys in the file that still work are kept; the others (first start, lost file, revoked key, another database or
    pepper) are made anew. The file is written before the commit: a crash between the two leaves a file that the next
    start replaces, never a working key whose text is lost.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        await connection.execute(
            "INSERT INTO accounts (id, name) VALUES ($1, $2) ON CONFLICT DO NOTHING", ACCOUNT_DEFAULT, "Default"
        )
        known = _read(file)
        texts: dict[str, str] = {}
        for name, scope in _KEYS.items():
            text = known.get(name, "")
            texts[name] = (
                text
                if await _works(connection, text, scope, peppers)
                else await _make(connection, name, scope, peppers=peppers, environment=environment)
            )
        content = {**texts, **{f"{name}_id": api_keys.parse(text).id for name, text in texts.items()}}
        if content != known:
            _write(file, content)
            logger.info("first keys written", extra={"file": str(file)})


async def _works(
    connection: "asyncpg.Connection[asyncpg.Record]", text: str, scope: str, peppers: Mapping[str, bytes]
) -> bool:
    try:
        key = api_keys.parse(text)
    except api_keys.MalformedKeyError:
        return False
    row = await connection.fetchrow(
        "SELECT digest, pepper_id FROM keys WHERE id = $1 AND state = 'active' AND $2 = ANY (scopes)"
        " AND (expire_time IS NULL OR expire_time > now())",
        key.id,
        scope,
    )
    if row is None or row["pepper_id"] not in peppers:
        return False
    return hmac.compare_digest(row["digest"], api_keys.digest(key.secret, peppers[row["pepper_id"]]))


async def _make(
    connection: "asyncpg.Connection[asyncpg.Record]",
    name: str,
    scope: str,
    *,
    peppers: Mapping[str, bytes],
    environment: str,
) -> str:
    pepper_id, pepper = next(iter(peppers.items()))
    key = api_keys.generate(environment)
    await connection.execute(
        "INSERT INTO keys (id, account, name, scopes, digest, pepper_id, last_four)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)",
        key.id,
        ACCOUNT_DEFAULT,
        f"first {name.replace('_', ' ')}",
        [scope],
        api_keys.digest(key.secret, pepper),
        pepper_id,
        key.secret[-4:],
    )
    return key.text


def _read(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}


def _write(file: Path, content: dict[str, str]) -> None:
    """All or nothing, and readable by the owner only from its first byte."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=2)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
