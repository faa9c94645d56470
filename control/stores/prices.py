"""Prices in Postgres."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import asyncpg

from control.stores.database import Database
from ledger.prices import RATES

if TYPE_CHECKING:
    Record = asyncpg.Record

_IN_FORCE = (
    "version IS NOT DISTINCT FROM (SELECT other.version FROM prices AS other WHERE other.model = prices.model"
    " AND other.effective_from <= now() ORDER BY other.effective_from DESC, other.version DESC LIMIT 1)"
)
_PRICE = f"version, model, currency, {', '.join(RATES)}, effective_from, create_time, {_IN_FORCE} AS in_force"
_RATE_PARAMETERS = ", ".join(f"${number}" for number in range(5, 5 + len(RATES)))


class PriceStore(Database):
    """Every query has a deadline."""

    async def create(
        self,
        model: str,
        currency: str,
        rates: Mapping[str, Decimal | None],
        effective_from: datetime | None,
        request_id: str | None,
    ) -> "Record":
        """The new version, in force from now on when no time is given; for a repeated request id, the first one."""
        async with self._connection() as connection:
            row = await connection.fetchrow(
                f"INSERT INTO prices (model, currency, effective_from, request_id, {', '.join(RATES)})"
                f" VALUES ($1, $2, coalesce($3, now()), $4, {_RATE_PARAMETERS})"
                f" ON CONFLICT (request_id) DO NOTHING RETURNING {_PRICE}",
                model,
                currency,
                effective_from,
                request_id,
                *(rates[name] for name in RATES),
            )
            version = row["version"] if row else None
            # Read again: a statement does not see what it inserted itself, and so not whether that is in force.
            row = await connection.fetchrow(
                f"SELECT {_PRICE} FROM prices WHERE version = $1 OR request_id = $2", version, request_id
            )
        assert row is not None
        return row

    async def page(self, model: str | None, current: bool, count: int, before: int | None) -> "list[Record]":
        """Newest version first. `current` leaves out what another version has replaced, now or from its start on."""
        replaced = (
            "EXISTS (SELECT FROM prices AS other WHERE other.model = prices.model"
            " AND (other.effective_from, other.version) > (prices.effective_from, prices.version)"
            " AND other.effective_from <= greatest(now(), prices.effective_from))"
        )
        async with self._connection() as connection:
            return await connection.fetch(
                f"SELECT {_PRICE} FROM prices WHERE ($1::text IS NULL OR model = $1)"
                f" AND ($2::bigint IS NULL OR version < $2) AND NOT ($3 AND {replaced})"
                " ORDER BY version DESC LIMIT $4",
                model,
                before,
                current,
                count,
            )
