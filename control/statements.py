"""StatementService: what an account used in a month, told apart by project, key, model and class of use."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc.aio
from uplion.control.v1 import statement_pb2, statement_service_pb2_grpc
from uplion.control.v1.statement_pb2 import ChainHead, Statement, StatementLine, StatementTotal, UsageCharge

from common.errors import Reason, UplionError
from control import requests
from control.classes import Charge, added, charges, total
from control.reading import Reading, Slice

if TYPE_CHECKING:
    import asyncpg

    Context = grpc.aio.ServicerContext[Any, Any]

_MONTH = re.compile(r"(20[0-9]{2})-(0[1-9]|1[0-2])")
_LATE = timedelta(days=1)  # what a process kept while its broker was away has come by then


class StatementService(statement_service_pb2_grpc.StatementServiceServicer):
    """Statements are not stored: rollups stay, and the same rollups make the same statement."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    async def GetStatement(  # noqa: N802  # the contract's name
        self, request: statement_pb2.GetStatementRequest, context: "Context"
    ) -> statement_pb2.GetStatementResponse:
        account = requests.account(request.account, requests.caller(context))
        if account is None:
            raise requests.invalid("account", "must be set")
        start, end = _month(request.month)
        name = await self._reading.account_name(account)
        if name is None:
            raise UplionError(Reason.NOT_FOUND, f"There is no account {account!r}.", param="account")
        statement = Statement(
            account=account,
            account_name=name,
            month=request.month,
            final=datetime.now(UTC) >= end + _LATE,
            opening_head=_head(await self._reading.chain_head(account, start)),
            closing_head=_head(await self._reading.chain_head(account, end)),
        )
        statement.create_time.GetCurrentTime()
        await self._fill(statement, Slice(account=account, start=start, end=end))
        return statement_pb2.GetStatementResponse(statement=statement)

    async def _fill(self, statement: Statement, part: Slice) -> None:
        rates = await self._reading.rates()
        lines: dict[tuple[str, str, str, str], list[Charge]] = {}
        totals: dict[str, list[Charge]] = {}
        for group in await self._reading.by_price(part):
            parts = charges(group, rates.get(group["price_version"]))
            lines.setdefault((group["project"], group["key"], group["model"], group["currency"]), []).extend(parts)
            totals.setdefault(group["currency"], []).extend(parts)
            statement.unpriced_requests += group["unpriced_requests"]
            statement.unpriced_tokens += group["unpriced_tokens"]
        for (project, key, model, currency), parts in lines.items():
            line = StatementLine(project=project, key=key, model=model, currency=currency, charges=_charges(parts))
            line.cost = requests.decimal_text(total(parts))
            statement.lines.append(line)
        for currency, parts in sorted(totals.items()):
            statement.totals.append(
                StatementTotal(currency=currency, charges=_charges(parts), cost=requests.decimal_text(total(parts)))
            )


def _charges(parts: Iterable[Charge]) -> list[UsageCharge]:
    return [
        UsageCharge(
            usage_class=part.usage_class,
            quantity=requests.decimal_text(part.quantity),
            cost=requests.decimal_text(part.cost),
        )
        for part in added(parts)
    ]


def _head(row: "asyncpg.Record | None") -> ChainHead:
    return ChainHead(link=row["link"], digest=row["digest"]) if row else ChainHead(digest=bytes(32))


def _month(text: str) -> tuple[datetime, datetime]:
    match = _MONTH.fullmatch(text)
    if match is None:
        raise requests.invalid("month", "must be a month such as 2026-11")
    start = datetime(int(match[1]), int(match[2]), 1, tzinfo=UTC)
    return start, (start + timedelta(days=32)).replace(day=1)
