"""UsageService: what was counted and billed, from the hourly rollups."""

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp
from uplion.control.v1 import usage_pb2, usage_service_pb2_grpc
from uplion.control.v1.usage_pb2 import UsageGrouping, UsageRow

from control import requests
from control.store import Store

if TYPE_CHECKING:
    import asyncpg

    Context = grpc.aio.ServicerContext[Any, Any]

_MOST_ROWS = 10_000
_ACCOUNT_CHARACTERS = 100
_GROUPS: dict[int, str] = {
    UsageGrouping.USAGE_GROUPING_UNSPECIFIED: "all",
    UsageGrouping.USAGE_GROUPING_MODEL: "model",
    UsageGrouping.USAGE_GROUPING_KEY: "key",
    UsageGrouping.USAGE_GROUPING_HOUR: "hour",
    UsageGrouping.USAGE_GROUPING_DAY: "day",
}


class UsageService(usage_service_pb2_grpc.UsageServiceServicer):
    """Reads what billing wrote."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def QueryUsage(  # noqa: N802  # the contract's name
        self, request: usage_pb2.QueryUsageRequest, context: "Context"
    ) -> usage_pb2.QueryUsageResponse:
        requests.caller(context)
        group = _GROUPS.get(request.grouping)
        if group is None:
            raise requests.invalid("grouping", "is not a known grouping")
        account = requests.text("account", request.account, most=_ACCOUNT_CHARACTERS) or None
        start = _hour("start_time", request.start_time) if request.HasField("start_time") else None
        end = _hour("end_time", request.end_time) if request.HasField("end_time") else None
        rows = usage_rows(await self._store.usage(group, account, start, end, _MOST_ROWS))
        if not rows and group == "all":
            rows = [UsageRow(group="all")]
        return usage_pb2.QueryUsageResponse(rows=rows)


def usage_rows(sums: "Iterable[asyncpg.Record]") -> list[UsageRow]:
    """A row for each group; one that was billed in several currencies has a row for each, since they cannot be added.

    What had no price is counted in the group's first row.
    """
    groups: dict[str, list[UsageRow]] = {}
    for record in sums:
        row = UsageRow(
            group=record["name"],
            requests=record["requests"],
            input_tokens=record["input_tokens"],
            cached_tokens=record["cached_tokens"],
            output_tokens=record["output_tokens"],
            cost_micros=micros(record["cost"]),
            currency=record["currency"],
        )
        known = groups.setdefault(row.group, [])
        other = next((each for each in known if not each.currency or not row.currency), None)
        if other is None:
            known.append(row)
            continue
        for field in ("requests", "input_tokens", "cached_tokens", "output_tokens", "cost_micros"):
            setattr(other, field, getattr(other, field) + getattr(row, field))
        other.currency = other.currency or row.currency
    return [row for rows in groups.values() for row in rows]


def micros(cost: Decimal) -> int:
    """Millionths, rounded half to even; the ledger itself is exact."""
    return int((cost * 1_000_000).to_integral_value(ROUND_HALF_EVEN))


def _hour(param: str, moment: Timestamp) -> datetime:
    """The hour it lies in: rollups know nothing finer."""
    try:
        return moment.ToDatetime(tzinfo=UTC).replace(minute=0, second=0, microsecond=0)
    except (ValueError, OverflowError):
        raise requests.invalid(param, "is no moment") from None
