"""Detection of alerts: budgets that run out, cost anomalies, usage without a price, events that wait or are dead.

The leader checks everything periodically; a unique key (kind, account, subject, period) makes each alert once. See
docs/alerts.md.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from nats.js.errors import NotFoundError

from billing import metrics
from common import names
from ledger import periods
from ledger.limits import Counting, Level, Limit, Rule
from ledger.usage_columns import TOTAL_TOKENS
from messaging.bus import Bus

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

logger = logging.getLogger(__name__)

EVERY_SECONDS = 30.0
_HOLDERS: tuple[tuple[Level, str], ...] = (
    ("account", "SELECT id AS account, id AS subject, limits FROM accounts WHERE limits <> '[]'"),
    ("project", "SELECT account, id AS subject, limits FROM projects WHERE limits <> '[]'"),
    ("key", "SELECT account, id AS subject, limits FROM keys WHERE limits <> '[]' AND state <> 'revoked'"),
)
_WANTED = "unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS wanted (account, scope, model, period)"
_BALANCES = f"SELECT * FROM balances JOIN {_WANTED} USING (account, scope, model, period)"
_COSTS = f"SELECT * FROM spending JOIN {_WANTED} USING (account, scope, model, period)"
# An hour is an anomaly when it cost so many times the median of the hours with any cost in the week before it.
_ANOMALIES = """
    WITH hours AS (
        SELECT account, currency, hour, sum(cost) AS cost FROM usage_hourly
        WHERE hour >= $1::timestamptz - interval '7 days 1 hour' AND hour <= $1 AND currency <> ''
        GROUP BY 1, 2, 3 HAVING sum(cost) > 0
    ), recent AS (
        SELECT * FROM hours WHERE hour >= $1::timestamptz - interval '1 hour' AND cost >= $2
    )
    SELECT recent.*, past.median, past.hours FROM recent, LATERAL (
        SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY cost) AS median, count(*) AS hours FROM hours
        WHERE (account, currency) = (recent.account, recent.currency) AND hour < recent.hour
          AND hour >= recent.hour - interval '7 days'
    ) AS past WHERE past.hours >= $4 AND recent.cost > $3 * past.median
"""
_HOURS_LEAST = 6  # with any cost, in the week before; with fewer there is no median to compare with
_UNPRICED = f"""
    SELECT model, sum(requests)::bigint AS requests, sum({TOTAL_TOKENS})::bigint AS tokens
    FROM usage_hourly WHERE hour >= $1 AND currency = '' AND policy <> 'waived'
    GROUP BY 1 HAVING sum({TOTAL_TOKENS}) > 0
"""
_WRITE = """
    WITH fresh AS (
        INSERT INTO alerts (kind, level, account, subject, period, message, facts)
        VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING id
    ), queued AS (
        INSERT INTO alert_outbox (alert) SELECT id FROM fresh WHERE $8
    )
    SELECT id FROM fresh
"""


class Alert(NamedTuple):
    """A finding, as a row of `alerts`."""

    kind: str
    level: str
    account: str  # '': the platform
    subject: str
    period: str
    message: str
    facts: dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When a finding becomes an alert."""

    budget_percents: Sequence[int]
    anomaly_factor: Decimal
    anomaly_floor: Decimal  # an hour that cost less is never an anomaly; in any currency
    lag_seconds: float


class Alerts:
    """Finds alerts and stores them; the webhook delivers them."""

    def __init__(self, bus: Bus, pool: "Pool", thresholds: Thresholds, *, webhook: bool) -> None:
        self._bus = bus
        self._pool = pool
        self._thresholds = thresholds
        self._webhook = webhook

    async def check(self, now: datetime | None = None) -> None:
        """Checks everything once; new alerts are stored, counted and queued for the webhook."""
        now = now or datetime.now(UTC)
        for check in (self._budgets, self._anomalies, self._unpriced, self._waiting):
            await self._write(await check(now))

    async def _write(self, alerts: Iterable[Alert]) -> None:
        for alert in alerts:
            values = (*alert[:-1], json.dumps(alert.facts), self._webhook)
            if await self._pool.fetchval(_WRITE, *values) is not None:
                metrics.BILLING_ALERTS.labels(alert.kind, alert.level).inc()
                logger.warning("alert", extra={"alert": alert.kind, "level": alert.level, "facts": alert.facts})

    async def _budgets(self, now: datetime) -> list[Alert]:
        rules = [pair for level, query in _HOLDERS for pair in _rules(level, await self._pool.fetch(query))]
        used = await self._used(rules, now)
        alerts: list[Alert] = []
        reached: Counter[int] = Counter()
        for account, rule in rules:
            for percent in self._thresholds.budget_percents:
                amount = used.get((account, rule), Decimal(0))
                if amount * 100 >= rule.limit.amount * percent and amount:
                    reached[percent] += 1
                    alerts.append(_budget(account, rule, percent, amount, now))
        for percent in self._thresholds.budget_percents:
            metrics.BILLING_BUDGETS_REACHED.labels(str(percent)).set(reached[percent])
        return alerts

    async def _used(self, rules: list[tuple[str, Rule]], now: datetime) -> dict[tuple[str, Rule], Decimal]:
        """In each rule's own period and unit."""
        if not rules:
            return {}
        keys = [(account, rule.scope, rule.limit.model, _period(rule.limit, now)) for account, rule in rules]
        columns = list(zip(*sorted(set(keys)), strict=True))
        balances = {tuple(row[:4]): row for row in await self._pool.fetch(_BALANCES, *columns)}
        costs = {
            (*row[:4], row["currency"]): row["cost"] * 1_000_000 for row in await self._pool.fetch(_COSTS, *columns)
        }
        used: dict[tuple[str, Rule], Decimal] = {}
        for key, (account, rule) in zip(keys, rules, strict=True):
            kind = rule.limit.kind
            if kind.is_money:
                used[account, rule] = costs.get((*key, rule.limit.currency), Decimal(0))
            else:
                used[account, rule] = Decimal(balances[key][kind.balance] if key in balances else 0)
        return used

    async def _anomalies(self, now: datetime) -> list[Alert]:
        hour = now.replace(minute=0, second=0, microsecond=0)
        rows = await self._pool.fetch(
            _ANOMALIES, hour, self._thresholds.anomaly_floor, self._thresholds.anomaly_factor, _HOURS_LEAST
        )
        return [
            Alert(
                "anomaly",
                "warning",
                row["account"],
                row["currency"],
                f"{row['hour'].astimezone(UTC):%Y-%m-%dT%H}",
                f"An hour cost {row['cost']:f} {row['currency']}; the median of the week before is {row['median']:f}.",
                {"cost": f"{row['cost']:f}", "median": f"{row['median']:f}", "currency": row["currency"]},
            )
            for row in rows
        ]

    async def _unpriced(self, now: datetime) -> list[Alert]:
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return [
            Alert(
                "unpriced",
                "critical",
                "",
                row["model"],
                periods.day_name(now),
                f"The model {row['model']!r} is used and has no price: {row['tokens']} tokens today are not billed.",
                {"model": row["model"], "tokens": row["tokens"], "requests": row["requests"]},
            )
            for row in await self._pool.fetch(_UNPRICED, day)
        ]

    async def _waiting(self, now: datetime) -> list[Alert]:
        """Usage events that wait too long, and messages in DEAD."""
        alerts = []
        seconds = await self._lag_seconds(now)
        metrics.BILLING_STREAM_LAG.set(seconds)
        if seconds > self._thresholds.lag_seconds:
            message = f"Usage events wait for {seconds:.0f} s to be billed."
            hour = f"{now:%Y-%m-%dT%H}"
            alerts.append(Alert("lag", "critical", "", names.STREAM_USAGE, hour, message, {"seconds": round(seconds)}))
        dead = (await self._bus.js.stream_info(names.STREAM_DEAD)).state.messages
        metrics.BILLING_DEAD.set(dead)
        if dead:
            message = f"{dead} messages in {names.STREAM_DEAD} could not be used."
            alerts.append(
                Alert("dead", "critical", "", names.STREAM_DEAD, periods.day_name(now), message, {"messages": dead})
            )
        return alerts

    async def _lag_seconds(self, now: datetime) -> float:
        """The age of the oldest event that is not billed; 0 when all are."""
        info = await self._bus.js.consumer_info(names.STREAM_USAGE, names.CONSUMER_BILLING)
        if not info.num_pending and not info.num_ack_pending:
            return 0.0
        floor = info.ack_floor.stream_seq if info.ack_floor else 0
        try:
            oldest = await self._bus.js.get_msg(names.STREAM_USAGE, seq=floor + 1, next=True, subject=">")
        except NotFoundError:
            return 0.0
        return max(0.0, (now - oldest.time).total_seconds()) if oldest.time else 0.0


def _rules(level: Level, holders: "Iterable[asyncpg.Record]") -> list[tuple[str, Rule]]:
    """The budgets among the limits: those of tokens or cost per day, month or life."""
    return [
        (holder["account"], Rule(level, holder["subject"], limit))
        for holder in holders
        for limit in msgspec.json.decode(holder["limits"], type=list[Limit])
        if limit.kind.counting is Counting.BALANCE
    ]


def _budget(account: str, rule: Rule, percent: int, used: Decimal, now: datetime) -> Alert:
    """The amount is part of the subject: a changed one is another budget, with thresholds of its own."""
    limit = rule.limit
    what = f"millionths of {limit.currency}" if limit.kind.is_money else limit.kind.noun
    facts: dict[str, str | int] = {
        "rule": rule.name,
        "scope": rule.scope,
        "percent": percent,
        "used": int(used),
        "amount": limit.amount,
    }
    return Alert(
        "budget",
        "critical" if percent >= 100 else "warning",
        account,
        f"{rule.scope}/{rule.name}/{limit.amount}/{percent}",
        _period(limit, now),
        f"{percent} % of the budget {rule.name} are used: {int(used)} of {limit.amount} {what}.",
        facts,
    )


def _period(limit: Limit, now: datetime) -> str:
    return periods.today(now.timestamp()).name(limit.period)
