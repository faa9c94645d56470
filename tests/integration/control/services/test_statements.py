"""Statements, exports and margins over the real admin API."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import grpc.aio
import pytest
from uplion.control.v1.statement_pb2 import GetStatementRequest
from uplion.control.v1.statement_service_pb2_grpc import StatementServiceStub
from uplion.control.v1.usage_pb2 import ExportFormat, ExportUsageRequest, QueryMarginRequest, UsageClass

from common.errors import Reason, from_rpc_error
from tests.integration.control.conftest import CALLER

ROLLUP = (
    "INSERT INTO usage_hourly (hour, account, project, key, model, tier, currency, price_version, policy, requests,"
    " input_tokens, cached_tokens, output_tokens, reasoning_tokens, compute_seconds, cost)"
    " VALUES ($1, 'acc', $2, 'k1', 'large', 'default', $3, $4, $5, 2, 1000000, 500000, 100, 0, 1800, $6)"
)


@pytest.fixture
async def filled(control, database):
    await database.execute("INSERT INTO accounts (id, name) VALUES ('acc', 'Accountants')")
    version = await database.fetchval(
        "INSERT INTO prices (model, effective_from, currency, input_per_million_tokens, cached_per_million_tokens,"
        " output_per_million_tokens) VALUES ('large', '2026-01-01', 'EUR', 2, 1, 10) RETURNING version"
    )
    cost = Decimal("1.501")
    for day, project, currency, price, policy, amount in (
        (1, "p", "EUR", version, "", cost),
        (2, "p", "EUR", version, "waived", Decimal(0)),
        (2, "", "EUR", version, "", cost),
        (3, "", "", 0, "", Decimal(0)),
    ):
        await database.execute(ROLLUP, datetime(2026, 10, day, tzinfo=UTC), project, currency, price, policy, amount)
    await database.execute(ROLLUP, datetime(2026, 9, 30, 23, tzinfo=UTC), "p", "EUR", version, "", cost)
    for link, moment in ((1, "2026-09-30"), (2, "2026-10-01"), (3, "2026-10-31 23:59"), (4, "2026-11-01")):
        await database.execute(
            "INSERT INTO ledger_chain (account, link, previous, digest, rows, record_time)"
            " VALUES ('acc', $1, $2, $2, 1, $3::text::timestamptz)",
            link,
            bytes([link]) * 32,
            f"{moment}+00",
        )
    return control


async def test_a_statement_tells_classes_totals_what_has_no_price_and_the_chain(filled):
    stub = StatementServiceStub(filled.channel)
    request = GetStatementRequest(account="acc", month="2026-10")
    found = (await filled.call(stub.GetStatement, request)).statement
    assert (found.account_name, found.final) == ("Accountants", datetime.now(UTC) >= datetime(2026, 11, 2, tzinfo=UTC))
    assert [(line.project, line.currency, line.cost) for line in found.lines] == [
        ("", "", "0"),
        ("", "EUR", "1.501"),
        ("p", "EUR", "1.501"),
    ]
    charges = {charge.usage_class: (charge.quantity, charge.cost) for charge in found.lines[2].charges}
    assert charges == {
        UsageClass.USAGE_CLASS_INPUT: ("1000000", "1"),
        UsageClass.USAGE_CLASS_CACHED_INPUT: ("1000000", "0.5"),
        UsageClass.USAGE_CLASS_OUTPUT: ("200", "0.001"),
        UsageClass.USAGE_CLASS_COMPUTE: ("3600", "0"),
        UsageClass.USAGE_CLASS_REQUEST: ("4", "0"),
    }
    assert [(total.currency, total.cost) for total in found.totals] == [("", "0"), ("EUR", "3.002")]
    assert (found.unpriced_requests, found.unpriced_tokens) == (2, 1_000_100)
    assert (found.opening_head.link, found.closing_head.link) == (1, 3)
    assert found.closing_head.digest == bytes([3]) * 32
    for month in ("2026-13", "26-10", "2026-10-01", ""):
        refused = await filled.refusal(stub.GetStatement, GetStatementRequest(account="acc", month=month))
        assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, "month")
    refused = await filled.refusal(stub.GetStatement, GetStatementRequest(account="nobody", month="2026-10"))
    assert refused.reason is Reason.NOT_FOUND


async def test_an_export_streams_and_is_empty_where_nothing_was(filled):
    async def export(**fields):
        call = filled.usage.ExportUsage(ExportUsageRequest(**fields), metadata=CALLER, timeout=15)
        pieces = [piece async for piece in call]
        return pieces[0].content_type, b"".join(piece.data for piece in pieces).decode()

    kind, text = await export(format=ExportFormat.EXPORT_FORMAT_JSON, project="p")
    assert kind == "application/json"
    assert [row["hour"] for row in json.loads(text)] == [
        "2026-09-30T23:00:00Z",
        "2026-10-01T00:00:00Z",
        "2026-10-02T00:00:00Z",
    ]
    assert (await export(account="nobody"))[1].count("\r\n") == 1
    assert json.loads((await export(account="nobody", format=ExportFormat.EXPORT_FORMAT_JSON))[1]) == []
    assert len((await export(format=ExportFormat.EXPORT_FORMAT_FOCUS))[1].splitlines()) > 5 * 4
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await filled.usage.ExportUsage(ExportUsageRequest(), metadata=(), timeout=15).read()
    assert from_rpc_error(refused.value).reason is Reason.PERMISSION_DENIED


async def test_margin_sets_revenue_beside_the_workers_hours(filled, database):
    await database.execute("INSERT INTO worker_hourly VALUES ('2026-10-01T00:00Z', 'large', 14400)")
    request = QueryMarginRequest(gpu_hour_cost="0.25")
    (row,) = (await filled.call(filled.usage.QueryMargin, request)).rows
    assert (row.model, row.currency, row.revenue, row.margin) == ("large", "EUR", "4.503", "3.503")
    assert (row.available_duration.ToSeconds(), row.busy_duration.ToSeconds(), row.idle_share) == (14400, 9000, 0.375)
    refused = await filled.refusal(filled.usage.QueryMargin, QueryMarginRequest(gpu_hour_cost="-1"))
    assert refused.param == "gpu_hour_cost"
