"""SQL: what authz reads of keys, accounts and balances. It writes nothing."""

from typing import Any

from authz.keys import KeyRecord

SCHEMA_VERSION = 4  # balances by scope, model and period

_KEY = """
SELECT k.id, k.account, k.digest, k.pepper_id, k.scopes, k.expire_time,
       k.state = 'active' AND a.state = 'active' AS active,
       k.requests_per_minute AS key_requests_per_minute, k.token_budget AS key_token_budget,
       a.requests_per_minute AS account_requests_per_minute, a.token_budget AS account_token_budget
FROM keys k JOIN accounts a ON a.id = k.account
WHERE k.id = $1
"""
_USED = (
    "SELECT scope, tokens FROM balances WHERE account = $1 AND scope IN ('a', 'k:' || $2) AND model = ''"
    " AND period = 'life'"
)


class Store:
    """Each call takes at most `seconds`, and raises what asyncpg raises."""

    def __init__(self, pool: Any, seconds: float) -> None:
        self._pool = pool
        self._seconds = seconds

    async def key(self, key_id: str) -> KeyRecord | None:
        async with self._pool.acquire(timeout=self._seconds) as connection:
            row = await connection.fetchrow(_KEY, key_id, timeout=self._seconds)
        if row is None:
            return None
        return KeyRecord(
            id=row["id"],
            account=row["account"],
            digest=bytes(row["digest"]),
            pepper_id=row["pepper_id"],
            scopes=frozenset(row["scopes"]),
            active=row["active"],
            expire_seconds=row["expire_time"].timestamp() if row["expire_time"] else None,
            key_requests_per_minute=row["key_requests_per_minute"],
            key_token_budget=row["key_token_budget"],
            account_requests_per_minute=row["account_requests_per_minute"],
            account_token_budget=row["account_token_budget"],
        )

    async def used_tokens(self, account: str, key_id: str) -> tuple[int, int]:
        """Lifetime tokens of the account and of the key."""
        async with self._pool.acquire(timeout=self._seconds) as connection:
            rows = await connection.fetch(_USED, account, key_id, timeout=self._seconds)
        totals = {row["scope"]: int(row["tokens"]) for row in rows}
        return totals.get("a", 0), totals.get(f"k:{key_id}", 0)
