"""Single rows of the ledger, as control reads them."""

from typing import TYPE_CHECKING

from control.stores.database import Database

if TYPE_CHECKING:
    import asyncpg

    Record = asyncpg.Record


class AttemptStore(Database):
    """Every query has a deadline."""

    async def of_request(self, request_id: str) -> "list[Record]":
        """All of a request, oldest first: through the ledger's own key, in every month there is."""
        async with self._connection() as connection:
            return await connection.fetch(
                "SELECT attempt, account, project, key, model, model_served, provider, tier, operation, status,"
                " finish_reason, error_reason, input_tokens, cached_tokens, cache_write_tokens, output_tokens,"
                " reasoning_tokens, queue_seconds, first_token_seconds, duration_seconds, compute_seconds, end_time,"
                " price_version, cost, currency, policy"
                " FROM usage_events WHERE request_id = $1 ORDER BY attempt, month",
                request_id,
            )
