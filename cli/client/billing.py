"""Prices, usage, statements, alerts and the ledger over the admin API. Decimals stay text, so no digit is lost."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from uplion.control.v1 import alert_pb2, ledger_pb2, price_pb2, statement_pb2, usage_pb2
from uplion.control.v1.alert_service_pb2_grpc import AlertServiceStub
from uplion.control.v1.ledger_service_pb2_grpc import LedgerServiceStub
from uplion.control.v1.price_service_pb2_grpc import PriceServiceStub
from uplion.control.v1.statement_service_pb2_grpc import StatementServiceStub
from uplion.control.v1.usage_service_pb2_grpc import UsageServiceStub

from cli.client.connection import Admin, shown_time
from cli.output import JsonObject
from ledger.usage_columns import TOKEN_COLUMNS

_COUNTS = ("requests", *TOKEN_COLUMNS, "unpriced_requests", "unpriced_tokens")


Filtered = TypeVar("Filtered", usage_pb2.QueryUsageRequest, usage_pb2.ExportUsageRequest)


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which usage; empty is all."""

    account: str = ""
    project: str = ""
    key: str = ""
    model: str = ""
    tier: str = ""
    start: datetime | None = None
    end: datetime | None = None

    def fill(self, request: Filtered) -> Filtered:
        """The request with these fields set."""
        for name in ("account", "project", "key", "model", "tier"):
            setattr(request, name, getattr(self, name))
        for name, moment in (("start_time", self.start), ("end_time", self.end)):
            if moment is not None:
                getattr(request, name).FromDatetime(_utc(moment))
        return request


def create_price(
    api: Admin, model: str, currency: str, rates: Mapping[str, str], effective_from: datetime | None
) -> JsonObject:
    """The new version; rates that are empty are not set."""
    request = price_pb2.CreatePriceRequest(model=model, currency=currency)
    request.rates.MergeFrom(usage_pb2.Rates(**{name: text for name, text in rates.items() if text}))
    if effective_from is not None:
        request.effective_from.FromDatetime(_utc(effective_from))
    return _price(api.call(api.stub(PriceServiceStub).CreatePrice, request).price)


def prices(api: Admin, model: str, *, current: bool) -> Iterator[JsonObject]:
    """Versions of prices, newest first."""
    request = price_pb2.ListPricesRequest(model=model, current=current)
    for page in api.pages(api.stub(PriceServiceStub).ListPrices, request):
        yield from map(_price, page.prices)


def usage(api: Admin, chosen: UsageFilter, by: str | None, order: str | None, top: int) -> list[JsonObject]:
    """Counted and billed usage."""
    request = chosen.fill(usage_pb2.QueryUsageRequest(top=top))
    if by is not None:
        request.grouping = usage_pb2.UsageGrouping.Value(f"USAGE_GROUPING_{by.upper()}")
    if order is not None:
        request.order = usage_pb2.UsageOrder.Value(f"USAGE_ORDER_{order.upper()}")
    return [_usage(row) for row in api.call(api.stub(UsageServiceStub).QueryUsage, request).rows]


def export(api: Admin, chosen: UsageFilter, form: str) -> Iterator[bytes]:
    """Usage as a file, in pieces."""
    request = chosen.fill(usage_pb2.ExportUsageRequest())
    request.format = usage_pb2.ExportFormat.Value(f"EXPORT_FORMAT_{form.upper()}")
    for piece in api.stream(api.stub(UsageServiceStub).ExportUsage, request):
        yield piece.data


def margin(
    api: Admin, model: str, start: datetime | None, end: datetime | None, gpu_hour_cost: str
) -> list[JsonObject]:
    """Revenue of models beside the time that their workers were available."""
    request = usage_pb2.QueryMarginRequest(model=model, gpu_hour_cost=gpu_hour_cost)
    for name, moment in (("start_time", start), ("end_time", end)):
        if moment is not None:
            getattr(request, name).FromDatetime(_utc(moment))
    return [
        {
            "model": row.model,
            "currency": row.currency,
            "revenue": row.revenue,
            "busy_seconds": row.busy_duration.ToMicroseconds() / 1e6,
            "available_seconds": row.available_duration.ToMicroseconds() / 1e6,
            "idle_share": row.idle_share if row.HasField("idle_share") else None,
            "revenue_per_available_hour": row.revenue_per_available_hour or None,
            "margin": row.margin or None,
        }
        for row in api.call(api.stub(UsageServiceStub).QueryMargin, request).rows
    ]


def statement(api: Admin, account: str, month: str) -> JsonObject:
    """An account's month."""
    request = statement_pb2.GetStatementRequest(account=account, month=month)
    found = api.call(api.stub(StatementServiceStub).GetStatement, request).statement
    return {
        "account": found.account,
        "account_name": found.account_name,
        "month": found.month,
        "final": found.final,
        "lines": [
            {
                "project": line.project,
                "key": line.key,
                "model": line.model,
                "currency": line.currency,
                "charges": _charges(line.charges),
                "cost": line.cost,
            }
            for line in found.lines
        ],
        "totals": [
            {"currency": total.currency, "charges": _charges(total.charges), "cost": total.cost}
            for total in found.totals
        ],
        "unpriced_requests": found.unpriced_requests,
        "unpriced_tokens": found.unpriced_tokens,
        "opening_head": _head(found.opening_head),
        "closing_head": _head(found.closing_head),
        "create_time": shown_time(found, "create_time"),
    }


def ledger_keys(api: Admin) -> list[JsonObject]:
    """The public keys that signed, newest first."""
    return [
        {"id": key.id, "public_key": key.public_key.hex(), "since": shown_time(key, "create_time")}
        for key in api.call(api.stub(LedgerServiceStub).ListLedgerKeys, ledger_pb2.ListLedgerKeysRequest()).keys
    ]


def export_ledger(api: Admin, account: str) -> Iterator[bytes]:
    """The ledger as a file, in pieces; of all accounts when none is named."""
    for piece in api.stream(api.stub(LedgerServiceStub).ExportLedger, ledger_pb2.ExportLedgerRequest(account=account)):
        yield piece.data


def alerts(api: Admin, account: str, most: int) -> list[JsonObject]:
    """Alerts, newest first."""
    request = alert_pb2.ListAlertsRequest(account=account, page_size=most)
    return [
        {
            "id": alert.id,
            "kind": alert_pb2.AlertKind.Name(alert.kind).removeprefix("ALERT_KIND_").lower(),
            "level": alert_pb2.AlertLevel.Name(alert.level).removeprefix("ALERT_LEVEL_").lower(),
            "account": alert.account,
            "subject": alert.subject,
            "period": alert.period,
            "message": alert.message,
            "create_time": shown_time(alert, "create_time"),
        }
        for alert in api.call(api.stub(AlertServiceStub).ListAlerts, request).alerts
    ]


def _charges(charges: Iterable[statement_pb2.UsageCharge]) -> list[dict[str, str]]:
    return [
        {
            "class": usage_pb2.UsageClass.Name(charge.usage_class).removeprefix("USAGE_CLASS_").lower(),
            "quantity": charge.quantity,
            "cost": charge.cost,
        }
        for charge in charges
    ]


def _head(head: statement_pb2.ChainHead) -> JsonObject:
    return {"link": head.link, "digest": head.digest.hex()}


def _usage(row: usage_pb2.UsageRow) -> JsonObject:
    return {
        "group": row.group,
        **{name: getattr(row, name) for name in _COUNTS},
        "compute_seconds": row.compute_duration.ToMicroseconds() / 1e6,
        "cost": row.cost,
        "cost_micros": row.cost_micros,
        "currency": row.currency,
    }


def _price(price: price_pb2.Price) -> JsonObject:
    rates = price.rates
    return {
        "version": price.version,
        "model": price.model,
        "currency": price.currency,
        **{
            field.name: getattr(rates, field.name) if not field.has_presence or rates.HasField(field.name) else None  # type: ignore[arg-type]
            for field in usage_pb2.Rates.DESCRIPTOR.fields
        },
        "effective_from": shown_time(price, "effective_from"),
        "create_time": shown_time(price, "create_time"),
        "in_force": price.in_force,
    }


def _utc(moment: datetime) -> datetime:
    """A time without a zone is UTC, as everywhere in billing."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
