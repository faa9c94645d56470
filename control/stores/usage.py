"""Usage from the hourly rollups in Postgres: sums by group, exports, statements and margins."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from control.stores.database import Database
from ledger.usage_columns import COMPUTE_SECONDS, TOKEN_COLUMNS, TOTAL_TOKENS

if TYPE_CHECKING:
    import asyncpg

    Record = asyncpg.Record

_EXPORT_SECONDS = 600.0
_ROWS_AT_ONCE = 1_000
# Grouping expressions. Times are UTC, in RFC 3339, and sort as text.
GROUPS = {
    "all": "'all'",
    "account": "account",
    "project": "project",
    "key": "key",
    "model": "model",
    "tier": "tier",
    "hour": """to_char(hour AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24":00:00Z"')""",
    "day": """to_char(hour AT TIME ZONE 'UTC', 'YYYY-MM-DD"T00:00:00Z"')""",
}
NEWEST, TOKENS, COST = "newest", "tokens", "cost"
# Ranks of groups, from 1. Costs in different currencies cannot be compared: each currency's first group comes first.
_PLACES = {
    NEWEST: "row_number() OVER (ORDER BY name DESC)",
    TOKENS: f"row_number() OVER (ORDER BY sum({TOTAL_TOKENS}) DESC, sum(requests) DESC, name)",
    COST: "row_number() OVER (ORDER BY min(place), name)",
}
# Usage without a price, except attempts that a policy waived.
_UNPRICED = "FILTER (WHERE currency = '' AND policy <> 'waived')"
SUMS = ", ".join(
    (
        *(f"sum({name})::bigint AS {name}" for name in ("requests", *TOKEN_COLUMNS)),
        f"sum({COMPUTE_SECONDS}) AS {COMPUTE_SECONDS}",
        "sum(cost) AS cost",
        f"coalesce(sum(requests) {_UNPRICED}, 0)::bigint AS unpriced_requests",
        f"coalesce(sum({TOTAL_TOKENS}) {_UNPRICED}, 0)::bigint AS unpriced_tokens",
    )
)


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which usage; None is all."""

    account: str | None = None
    project: str | None = None
    key: str | None = None
    model: str | None = None
    tier: str | None = None
    start: datetime | None = None  # an hour's beginning, as all that rollups know
    end: datetime | None = None

    @property
    def values(self) -> tuple[str | datetime | None, ...]:
        """The parameters of WITHIN."""
        return self.account, self.project, self.key, self.model, self.tier, self.start, self.end


WITHIN = (
    "($1::text IS NULL OR account = $1) AND ($2::text IS NULL OR project = $2) AND ($3::text IS NULL OR key = $3)"
    " AND ($4::text IS NULL OR model = $4) AND ($5::text IS NULL OR tier = $5)"
    " AND ($6::timestamptz IS NULL OR hour >= $6) AND ($7::timestamptz IS NULL OR hour < $7)"
)


class UsageStore(Database):
    """Every query has a deadline."""

    async def sums(self, group: str, chosen: UsageFilter, order: str, count: int) -> "list[Record]":
        """By group and currency, the first `count` groups; `group` is a key of GROUPS, `order` one of _PLACES."""
        async with self._connection() as connection:
            return await connection.fetch(
                f"WITH sums AS (SELECT {GROUPS[group]} AS name, currency, {SUMS} FROM usage_hourly WHERE {WITHIN}"
                " GROUP BY 1, 2),"
                " placed AS (SELECT *, CASE currency WHEN '' THEN NULL ELSE row_number()"
                "   OVER (PARTITION BY currency ORDER BY cost DESC, name) END AS place FROM sums),"
                f" places AS (SELECT name, {_PLACES[order]} AS place FROM placed GROUP BY name)"
                " SELECT sums.* FROM sums JOIN places USING (name) WHERE places.place <= $8"
                " ORDER BY places.place, (currency = ''), sums.cost DESC, currency",
                *chosen.values,
                count,
            )

    async def rollups(self, chosen: UsageFilter) -> "AsyncIterator[list[Record]]":
        """The rollups themselves with the names that belong to them, oldest hour first, some at a time."""
        async with self._connection(_EXPORT_SECONDS) as connection, connection.transaction(readonly=True):
            cursor = await connection.cursor(
                f"SELECT hourly.*, accounts.name AS account_name, projects.name AS project_name, keys.name AS key_name"
                f" FROM (SELECT * FROM usage_hourly WHERE {WITHIN}) AS hourly"
                " LEFT JOIN accounts ON accounts.id = hourly.account LEFT JOIN projects ON projects.id = hourly.project"
                " LEFT JOIN keys ON keys.id = hourly.key"
                " ORDER BY hour, hourly.account, hourly.project, key, model, tier, currency, price_version, policy",
                *chosen.values,
            )
            while rows := await cursor.fetch(_ROWS_AT_ONCE):
                yield rows

    async def by_price(self, chosen: UsageFilter) -> "list[Record]":
        """Sums by project, key, model, currency, price and policy: what a statement is made from."""
        async with self._connection() as connection:
            return await connection.fetch(
                f"SELECT project, key, model, currency, price_version, policy, {SUMS} FROM usage_hourly WHERE {WITHIN}"
                " GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6",
                *chosen.values,
            )

    async def rates(self) -> "dict[int, Record]":
        """The rates of every version of every price."""
        async with self._connection() as connection:
            return {row["version"]: row for row in await connection.fetch("SELECT * FROM prices")}

    async def account_name(self, account: str) -> str | None:
        """None when there is no such account."""
        async with self._connection() as connection:
            name: str | None = await connection.fetchval("SELECT name FROM accounts WHERE id = $1", account)
            return name

    async def chain_head(self, account: str, moment: datetime) -> "Record | None":
        """The account's last link before a moment."""
        async with self._connection() as connection:
            return await connection.fetchrow(
                "SELECT link, digest FROM ledger_chain WHERE account = $1 AND record_time < $2"
                " ORDER BY link DESC LIMIT 1",
                account,
                moment,
            )

    async def revenue(self, chosen: UsageFilter) -> "list[Record]":
        """Cost and engines' time by model and currency."""
        async with self._connection() as connection:
            return await connection.fetch(
                "SELECT model, currency, sum(cost) AS cost, sum(compute_seconds) AS compute_seconds FROM usage_hourly"
                f" WHERE {WITHIN} GROUP BY 1, 2 ORDER BY 1, 2",
                *chosen.values,
            )

    async def worker_seconds(self, chosen: UsageFilter) -> "list[Record]":
        """How long workers were available, by model."""
        async with self._connection() as connection:
            return await connection.fetch(
                "SELECT model, sum(worker_seconds) AS seconds FROM worker_hourly"
                " WHERE ($1::text IS NULL OR model = $1) AND ($2::timestamptz IS NULL OR hour >= $2)"
                " AND ($3::timestamptz IS NULL OR hour < $3) GROUP BY 1 ORDER BY 1",
                chosen.model,
                chosen.start,
                chosen.end,
            )
