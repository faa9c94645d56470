"""UsageService: sums and exports of usage and cost from the hourly rollups."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, NamedTuple

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from uplion.control.v1 import usage_pb2, usage_service_pb2_grpc
from uplion.control.v1.usage_pb2 import ExportFormat, MarginRow, UsageGrouping, UsageOrder, UsageRow

from control import export_formats
from control.export_formats import Writer
from control.requests import fields
from control.requests.caller import Caller
from control.stores import usage
from control.stores.usage import UsageFilter, UsageStore
from ledger.usage_columns import TOKEN_COLUMNS

if TYPE_CHECKING:
    import asyncpg

    from control.requests.caller import Context

_MOST_GROUPS = 10_000
_NAME_CHARACTERS = 256
_GROUPS: dict[int, str] = {
    UsageGrouping.USAGE_GROUPING_UNSPECIFIED: "all",
    UsageGrouping.USAGE_GROUPING_ACCOUNT: "account",
    UsageGrouping.USAGE_GROUPING_PROJECT: "project",
    UsageGrouping.USAGE_GROUPING_KEY: "key",
    UsageGrouping.USAGE_GROUPING_MODEL: "model",
    UsageGrouping.USAGE_GROUPING_TIER: "tier",
    UsageGrouping.USAGE_GROUPING_HOUR: "hour",
    UsageGrouping.USAGE_GROUPING_DAY: "day",
}
_EXPORTS_AT_ONCE = 2  # each holds a connection for as long as its reader takes
_COUNTS = ("requests", *TOKEN_COLUMNS, "unpriced_requests", "unpriced_tokens")


class _Format(NamedTuple):
    content_type: str
    write: Writer
    end: str = ""


_CSV = _Format("text/csv; charset=utf-8", export_formats.write_csv)
_FORMATS: dict[int, _Format] = {
    ExportFormat.EXPORT_FORMAT_UNSPECIFIED: _CSV,
    ExportFormat.EXPORT_FORMAT_CSV: _CSV,
    ExportFormat.EXPORT_FORMAT_JSON: _Format("application/json", export_formats.write_json, export_formats.JSON_END),
    ExportFormat.EXPORT_FORMAT_FOCUS: _Format("text/csv; charset=utf-8", export_formats.write_focus),
}


class UsageService(usage_service_pb2_grpc.UsageServiceServicer):
    """Reads what billing wrote."""

    def __init__(self, store: UsageStore) -> None:
        self._store = store
        self._exports = asyncio.Semaphore(_EXPORTS_AT_ONCE)

    async def ExportUsage(self, request: usage_pb2.ExportUsageRequest, context: "Context") -> AsyncIterator[HttpBody]:
        caller = Caller.current()
        form = _FORMATS.get(request.format)
        if form is None:
            raise fields.invalid("format", "is not a known format")
        chosen, prices, first = read_filter(request, caller), await self._store.rates(), True
        async with self._exports:
            async for rows in self._store.rollups(chosen):
                yield HttpBody(content_type=form.content_type, data=form.write(rows, prices, first).encode())
                first = False
        end = (form.write((), prices, True) if first else "") + form.end
        yield HttpBody(content_type=form.content_type, data=end.encode())

    async def QueryMargin(
        self, request: usage_pb2.QueryMarginRequest, context: "Context"
    ) -> usage_pb2.QueryMarginResponse:
        chosen = UsageFilter(
            model=fields.text("model", request.model, most=_NAME_CHARACTERS) or None,
            start=_hour("start_time", request.start_time) if request.HasField("start_time") else None,
            end=_hour("end_time", request.end_time) if request.HasField("end_time") else None,
        )
        cost = fields.amount("gpu_hour_cost", request.gpu_hour_cost) if request.gpu_hour_cost else None
        revenue, seconds = await self._store.revenue(chosen), await self._store.worker_seconds(chosen)
        return usage_pb2.QueryMarginResponse(rows=margin_rows(revenue, seconds, cost))

    async def QueryUsage(
        self, request: usage_pb2.QueryUsageRequest, context: "Context"
    ) -> usage_pb2.QueryUsageResponse:
        caller = Caller.current()
        group = _GROUPS.get(request.grouping)
        if group is None:
            raise fields.invalid("grouping", "is not a known grouping")
        if request.top < 0:
            raise fields.invalid("top", "must not be negative")
        count = min(request.top, _MOST_GROUPS) or _MOST_GROUPS
        rows = usage_rows(
            await self._store.sums(group, read_filter(request, caller), _order(request.order, group), count)
        )
        if not rows and group == "all":
            rows = [UsageRow(group="all", cost="0")]
        return usage_pb2.QueryUsageResponse(rows=rows)


def read_filter(request: usage_pb2.QueryUsageRequest | usage_pb2.ExportUsageRequest, caller: Caller) -> UsageFilter:
    """The filter of a request; times are truncated to hours, the resolution of the rollups."""

    def name_filter(name: str) -> str | None:
        return fields.text(name, getattr(request, name), most=_NAME_CHARACTERS) or None

    return UsageFilter(
        account=fields.account(request.account, caller),
        project=name_filter("project"),
        key=name_filter("key"),
        model=name_filter("model"),
        tier=name_filter("tier"),
        start=_hour("start_time", request.start_time) if request.HasField("start_time") else None,
        end=_hour("end_time", request.end_time) if request.HasField("end_time") else None,
    )


def usage_rows(sums: "Iterable[asyncpg.Record]") -> list[UsageRow]:
    """A row for each group; one that was billed in several currencies has a row for each, since they cannot be added.

    Usage without a price is added to its group's row, or has a row of its own when the group has several.
    """
    groups: dict[str, list[UsageRow]] = {}
    for record in sums:
        row = UsageRow(
            group=record["name"],
            currency=record["currency"],
            cost=fields.decimal_text(record["cost"]),
            cost_micros=micros(record["cost"]),
            compute_duration=duration(record["compute_seconds"]),
            **{name: record[name] for name in _COUNTS},
        )
        known = groups.setdefault(row.group, [])
        if not row.currency and len(known) == 1:
            _count_in(known[0], row)
        else:
            known.append(row)
    return [row for rows in groups.values() for row in rows]


def _count_in(row: UsageRow, unpriced: UsageRow) -> None:
    for name in _COUNTS:
        setattr(row, name, getattr(row, name) + getattr(unpriced, name))
    row.compute_duration.FromNanoseconds(
        row.compute_duration.ToNanoseconds() + unpriced.compute_duration.ToNanoseconds()
    )


def margin_rows(
    revenue: "Iterable[asyncpg.Record]", seconds: "Iterable[asyncpg.Record]", gpu_hour_cost: Decimal | None
) -> list[MarginRow]:
    """A row for each model and currency; also of a model without revenue or without workers."""
    available: dict[str, Decimal] = {row["model"]: row["seconds"] for row in seconds}
    earned: dict[str, dict[str, Decimal]] = {model: {} for model in available}
    busy: dict[str, Decimal] = {}
    for row in revenue:
        busy[row["model"]] = busy.get(row["model"], Decimal(0)) + row["compute_seconds"]
        by_currency = earned.setdefault(row["model"], {})
        if row["currency"]:
            by_currency[row["currency"]] = row["cost"]
    return [
        _margin(model, currency, cost, busy.get(model, Decimal(0)), available.get(model, Decimal(0)), gpu_hour_cost)
        for model in sorted(earned)
        for currency, cost in sorted((earned[model] or {"": Decimal(0)}).items())
    ]


def _margin(
    model: str, currency: str, cost: Decimal, busy: Decimal, available: Decimal, gpu_hour_cost: Decimal | None
) -> MarginRow:
    row = MarginRow(
        model=model,
        currency=currency,
        revenue=fields.decimal_text(cost),
        busy_duration=duration(busy),
        available_duration=duration(available),
    )
    hours = available / 3600
    if available:
        row.idle_share = float(max(Decimal(0), 1 - busy / available))
        row.revenue_per_available_hour = fields.decimal_text((cost / hours).quantize(Decimal("0.000001")))
    if gpu_hour_cost is not None:
        row.margin = fields.decimal_text((cost - hours * gpu_hour_cost).quantize(Decimal("0.000001")))
    return row


def micros(cost: Decimal) -> int:
    """Millionths, rounded half to even; the ledger itself is exact."""
    return int((cost * 1_000_000).to_integral_value(ROUND_HALF_EVEN))


def duration(seconds: Decimal) -> Duration:
    """The ledger's seconds, exact to the microsecond."""
    made = Duration()
    made.FromMicroseconds(int(seconds * 1_000_000))
    return made


def _order(asked: int, group: str) -> str:
    if asked == UsageOrder.USAGE_ORDER_UNSPECIFIED:
        return usage.NEWEST if group in ("hour", "day") else usage.TOKENS
    if asked == UsageOrder.USAGE_ORDER_COST:
        return usage.COST
    if asked == UsageOrder.USAGE_ORDER_TOKENS:
        return usage.TOKENS
    raise fields.invalid("order", "is not a known order")


def _hour(param: str, moment: Timestamp) -> datetime:
    return fields.moment(param, moment).replace(minute=0, second=0, microsecond=0)
