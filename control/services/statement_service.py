"""StatementService: an account's usage of a month by project, key, model and class of usage."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from uplion.control.v1 import statement_pb2, statement_service_pb2_grpc
from uplion.control.v1.statement_pb2 import ChainHead, Statement, StatementLine, StatementTotal, UsageCharge

from common.errors import Reason, UplionError
from control.charges import Charge, added, charges, total
from control.requests import fields
from control.requests.caller import Caller
from control.stores.usage import UsageFilter, UsageStore
from ledger.periods import next_month

if TYPE_CHECKING:
    import asyncpg

    from control.requests.caller import Context

_MONTH = re.compile(r"(20[0-9]{2})-(0[1-9]|1[0-2])")
_LATE = timedelta(days=1)  # events that a process spooled while its broker was away have arrived by then


class StatementService(statement_service_pb2_grpc.StatementServiceServicer):
    """Statements are computed from the rollups on each request, and not stored."""

    def __init__(self, store: UsageStore) -> None:
        self._store = store

    async def GetStatement(
        self, request: statement_pb2.GetStatementRequest, context: "Context"
    ) -> statement_pb2.GetStatementResponse:
        account = fields.account(request.account, Caller.current())
        if account is None:
            raise fields.invalid("account", "must be set")
        start, end = _month(request.month)
        name = await self._store.account_name(account)
        if name is None:
            raise UplionError(Reason.NOT_FOUND, f"There is no account {account!r}.", param="account")
        statement = Statement(
            account=account,
            account_name=name,
            month=request.month,
            final=datetime.now(UTC) >= end + _LATE,
            opening_head=_head(await self._store.chain_head(account, start)),
            closing_head=_head(await self._store.chain_head(account, end)),
        )
        statement.create_time.GetCurrentTime()
        await self._fill(statement, UsageFilter(account=account, start=start, end=end))
        return statement_pb2.GetStatementResponse(statement=statement)

    async def _fill(self, statement: Statement, chosen: UsageFilter) -> None:
        rates = await self._store.rates()
        lines: dict[tuple[str, str, str, str], list[Charge]] = {}
        totals: dict[str, list[Charge]] = {}
        for group in await self._store.by_price(chosen):
            parts = charges(group, rates.get(group["price_version"]))
            lines.setdefault((group["project"], group["key"], group["model"], group["currency"]), []).extend(parts)
            totals.setdefault(group["currency"], []).extend(parts)
            statement.unpriced_requests += group["unpriced_requests"]
            statement.unpriced_tokens += group["unpriced_tokens"]
        for (project, key, model, currency), parts in lines.items():
            line = StatementLine(project=project, key=key, model=model, currency=currency, charges=_charges(parts))
            line.cost = fields.decimal_text(total(parts))
            statement.lines.append(line)
        for currency, parts in sorted(totals.items()):
            statement.totals.append(
                StatementTotal(currency=currency, charges=_charges(parts), cost=fields.decimal_text(total(parts)))
            )


def _charges(parts: Iterable[Charge]) -> list[UsageCharge]:
    return [
        UsageCharge(
            usage_class=part.usage_class,
            quantity=fields.decimal_text(part.quantity),
            cost=fields.decimal_text(part.cost),
        )
        for part in added(parts)
    ]


def _head(row: "asyncpg.Record | None") -> ChainHead:
    return ChainHead(link=row["link"], digest=row["digest"]) if row else ChainHead(digest=bytes(32))


def _month(text: str) -> tuple[datetime, datetime]:
    match = _MONTH.fullmatch(text)
    if match is None:
        raise fields.invalid("month", "must be a month such as 2026-11")
    start = datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC)
    return start, next_month(start)
