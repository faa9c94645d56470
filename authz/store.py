"""The SQL by which authz reads keys, prices and the ledger. It writes nothing."""

from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal

import asyncpg
import msgspec

from authz.credentials.key_record import KeyRecord, owner_id
from authz.errors import DatabaseError
from authz.limits.plans import LedgerBalance
from authz.limits.prices import Price
from ledger import prices, usage_columns
from ledger.limits import BALANCES, Level, Limit, Rule
from ledger.prices import Rates

# Projects and limits (3), balances by scope, model and period (4), and all rates of prices.
SCHEMA_VERSION = max(4, usage_columns.SCHEMA_VERSION)

_KEYS = """
SELECT k.id, k.account, coalesce(k.project, '') AS project, k.digest, k.pepper_id, k.scopes, k.expire_time,
       k.state = 'active' AND a.state = 'active' AND coalesce(p.state, 'active') = 'active' AS active,
       k.models, k.tiers, k.networks::text[] AS networks,
       a.limits AS account_limits, p.limits AS project_limits, k.limits AS key_limits
FROM keys k JOIN accounts a ON a.id = k.account LEFT JOIN projects p ON p.id = k.project
WHERE k.id = ANY($1::text[])
"""
_OWNER = """
SELECT a.id AS account, coalesce(p.id, '') AS project,
       a.state = 'active' AND coalesce(p.state, 'active') = 'active' AS active,
       a.limits AS account_limits, p.limits AS project_limits
FROM accounts a LEFT JOIN projects p ON p.account = a.id AND p.id = $2
WHERE a.id = $1 AND ($2 = '' OR p.id IS NOT NULL)
"""
# Of `balances`; what is spent is in a table of its own, by currency.
_COLUMNS = " ".join(
    f"WHEN '{kind.balance}' THEN balance.{kind.balance}" for kind in BALANCES.values() if not kind.is_money
)
# One row for each that is asked for, in that order; nothing counted yet is 0.
_USED = f"""
SELECT coalesce(CASE wanted.counted {_COLUMNS} ELSE spent.cost END, 0) AS total
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[]) WITH ORDINALITY
     AS wanted (scope, model, period, currency, counted, position)
LEFT JOIN balances balance ON balance.account = $1 AND balance.scope = wanted.scope
     AND balance.model = wanted.model AND balance.period = wanted.period
LEFT JOIN spending spent ON spent.account = $1 AND spent.scope = wanted.scope AND spent.model = wanted.model
     AND spent.period = wanted.period AND spent.currency = wanted.currency
ORDER BY wanted.position
"""
_PRICES = f"""
SELECT model, extract(epoch FROM effective_from)::float8 AS effective_seconds, version, currency,
       {", ".join(prices.RATES)}
FROM prices
"""
_ENDED = f"""
SELECT reservation, {usage_columns.TOTAL_TOKENS} AS tokens FROM usage_events WHERE request_id = ANY($1::text[]) AND last
"""
_BACKGROUND_SECONDS = 5.0
_limits = msgspec.json.Decoder(tuple[Limit, ...])


# What asyncpg raises when the database is away, slow, or not what it should be.
_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


class Store:
    """Each call takes at most `seconds`, or five where no request waits for it, and raises DatabaseError."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", seconds: float) -> None:
        self._pool = pool
        self._seconds = seconds

    async def keys(self, key_ids: Sequence[str]) -> dict[str, KeyRecord | DatabaseError]:
        """Those keys that exist, with their accounts and projects; an error in place of one that cannot be read."""
        found: dict[str, KeyRecord | DatabaseError] = {}
        for row in await self._fetch(_KEYS, list(key_ids)):
            try:
                found[row["id"]] = _record(row)
            except DatabaseError as problem:
                found[row["id"]] = problem
        return found

    async def owner(self, account: str, project: str) -> KeyRecord | None:
        """The record for the account's tokens: it belongs to no key, and no secret matches it."""
        rows = await self._fetch(_OWNER, account, project)
        if not rows:
            return None
        row = rows[0]
        return KeyRecord(
            id=owner_id(account, project),
            account=row["account"],
            project=row["project"],
            digest=b"",
            pepper_id="",
            scopes=frozenset(),
            active=row["active"],
            rules=_owners_rules(row),
        )

    async def used(self, account: str, wanted: Sequence[LedgerBalance]) -> list[int]:
        """The ledger's balances: tokens, or with a currency its millionths."""
        rows = await self._fetch(_USED, account, *zip(*wanted, strict=True))
        return [
            _millionths(row["total"]) if balance.currency else int(row["total"])
            for row, balance in zip(rows, wanted, strict=True)
        ]

    async def prices(self) -> list[Price]:
        """Every version of every price."""
        return [_price(row, Rates.of(row)) for row in await self._fetch(_PRICES, seconds=_BACKGROUND_SECONDS)]

    async def ended(self, request_ids: Sequence[str]) -> dict[str, int]:
        """Reservations of those requests whose last event is in the ledger, and that event's tokens."""
        rows = await self._fetch(_ENDED, request_ids, seconds=_BACKGROUND_SECONDS)
        return {row["reservation"]: int(row["tokens"]) for row in rows}

    async def _fetch(self, query: str, *arguments: object, seconds: float | None = None) -> "list[asyncpg.Record]":
        seconds = self._seconds if seconds is None else seconds
        try:
            async with self._pool.acquire(timeout=seconds) as connection:
                return list(await connection.fetch(query, *arguments, timeout=seconds))
        except _FAILURES as problem:
            raise DatabaseError(repr(problem)) from problem


def _record(row: "asyncpg.Record") -> KeyRecord:
    return KeyRecord(
        id=row["id"],
        account=row["account"],
        project=row["project"],
        digest=bytes(row["digest"]),
        pepper_id=row["pepper_id"],
        scopes=frozenset(row["scopes"]),
        active=row["active"],
        expire_seconds=row["expire_time"].timestamp() if row["expire_time"] else None,
        rules=_owners_rules(row) + _rules("key", row["id"], row["key_limits"]),
        models=tuple(row["models"]),
        tiers=tuple(row["tiers"]),
        networks=tuple(row["networks"]),
    )


def _price(row: "asyncpg.Record", rates: Rates) -> Price:
    """By the dearest way to count each token, since a request does not say how much of it will be cached."""
    return Price(
        row["model"],
        row["effective_seconds"],
        row["version"],
        row["currency"],
        prices.in_trillionths(rates.dearest_token(usage_columns.INPUT)),
        prices.in_trillionths(rates.dearest_token(usage_columns.OUTPUT)),
        prices.in_trillionths(rates.request),
    )


def _owners_rules(row: "asyncpg.Record") -> tuple[Rule, ...]:
    rules = _rules("account", row["account"], row["account_limits"])
    if row["project"]:
        rules += _rules("project", row["project"], row["project_limits"])
    return rules


def _rules(level: Level, subject: str, limits: str) -> tuple[Rule, ...]:
    """Of one level; raises DatabaseError for a limit that this version does not know."""
    try:
        return tuple(Rule(level, subject, limit) for limit in _limits.decode(limits))
    except msgspec.DecodeError as problem:
        raise DatabaseError(f"the limits of {level} {subject}: {problem}") from problem


def _millionths(cost: Decimal) -> int:
    return int((cost * 1_000_000).to_integral_value(ROUND_CEILING))
