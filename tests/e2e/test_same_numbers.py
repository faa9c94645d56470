"""The same number everywhere: ledger, rollups, balances, API, command line, exports, statement and metric agree."""

import asyncio
import csv
import io
import json
import random
import urllib.request
import uuid
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
from uplion.billing.v1.usage_event_pb2 import AttemptStatus, UsageEvent

from common import names
from messaging.bus import connect_bus
from tests.kit.platform import Platform
from tests.kit.until import until_sync
from tests.kit.usage_events import all_acknowledged

MODELS = ("same-euro", "same-dollar", "same-unpriced")
TOKENS = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
SUMS = "coalesce(currency, '') AS currency, sum(input_tokens + output_tokens)::bigint AS tokens, sum(cost) AS cost"


def event(account: str, number: int, dice: random.Random) -> UsageEvent:
    made = UsageEvent(
        request_id=f"{account}-{number}",
        attempt=1,
        account=account,
        key=f"key{number % 3}",
        project=dice.choice(("", f"{account}-p")),
        model="alias",
        model_served=dice.choice(MODELS),
        provider="synthetic",
        lane="default",
        tier=dice.choice(("default", "batch")),
        status=dice.choice(list(AttemptStatus.values())[1:]),
        last=True,
        operation="chat",
    )
    usage = made.usage
    usage.input_tokens, usage.output_tokens = dice.randrange(1000), dice.choice((0, dice.randrange(500)))
    usage.cached_tokens = dice.randrange(usage.input_tokens // 2 + 1)
    usage.cache_write_tokens = dice.randrange(usage.input_tokens // 2 + 1)
    usage.reasoning_tokens = dice.randrange(usage.output_tokens + 1)
    made.compute_duration.FromMicroseconds(dice.randrange(3_000_000))
    made.duration.FromMilliseconds(250)
    made.end_time.GetCurrentTime()
    made.ticket_time.CopyFrom(made.end_time)
    return made


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


async def sql(platform: Platform, query: str, *arguments: object) -> list[Any]:
    connection = await asyncpg.connect(platform.facts["postgres_url"], timeout=10)
    try:
        rows: list[Any] = await connection.fetch(query, *arguments)
        return rows
    finally:
        await connection.close()


async def publish(platform: Platform, events: list[UsageEvent]) -> None:
    async with connect_bus(platform.facts["nats_url"], "test") as bus:
        for each in events:
            await bus.publish(names.usage_subject(each.model_served), each.SerializeToString())


async def billed(platform: Platform) -> bool:
    """Whether billing is done with all that other tests have left."""
    async with connect_bus(platform.facts["nats_url"], "test") as bus:
        return await all_acknowledged(bus)


def metric(platform: Platform) -> Counter[str]:
    """Billing's counters, as Prometheus reads them."""
    parts = platform.cli("status")["parts"]
    address = next(part["metrics_address"] for part in parts if part["name"] == "billing-control")
    text = urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read().decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("uplion_billing_")]
    return Counter({name: Decimal(value) for name, _, value in lines})


def by_currency(rows: list[Any]) -> dict[str, tuple[int, Decimal]]:
    return {row["currency"]: (row["tokens"], row["cost"] or Decimal(0)) for row in rows}


def test_every_way_to_ask_gives_the_same_number(platform: Platform, tmp_path: Path) -> None:
    dice, account = random.Random(4), f"same-{uuid.uuid4().hex[:8]}"
    policy = json.dumps({"cancelled": "input_only"})
    run(sql(platform, "INSERT INTO accounts (id, name, billing_policy) VALUES ($1, '=Same', $2)", account, policy))
    run(sql(platform, "INSERT INTO projects (id, account, name) VALUES ($1, $2, 'p')", f"{account}-p", account))
    rates = ("--input", "0.15", "--output", "0.6000000001", "--cached", "0.01", "--request", "0.0003")
    platform.cli("prices", "set", MODELS[0], "--currency", "EUR", *rates, "--gpu-second", "0.000007")
    platform.cli("prices", "set", MODELS[1], "--currency", "USD", *rates, "--reasoning", "3", "--cache-write", "0.2")
    until_sync(lambda: run(billed(platform)), 60)
    before = metric(platform)
    events = [event(account, number, dice) for number in range(200)]
    run(publish(platform, events))
    ledger = "SELECT {} FROM usage_events WHERE account = $1 GROUP BY 1"
    until_sync(lambda: run(sql(platform, "SELECT FROM usage_events WHERE account = $1", account))[199:], 30)

    whole = by_currency(run(sql(platform, ledger.format(SUMS), account)))
    assert whole.keys() == {"EUR", "USD", ""}
    assert sum(tokens for tokens, _ in whole.values()) == sum(
        each.usage.input_tokens + each.usage.output_tokens for each in events
    )
    costs = {currency: cost for currency, (_, cost) in whole.items() if currency}
    assert min(costs.values()) > 0
    rolled = run(sql(platform, f"SELECT {SUMS} FROM usage_hourly WHERE account = $1 GROUP BY 1", account))
    assert by_currency(rolled) == whole
    balance = "WHERE account = $1 AND scope = 'a' AND model = '' AND period = 'life'"
    (enforced,) = run(sql(platform, f"SELECT tokens FROM balances {balance}", account))
    assert enforced["tokens"] == sum(tokens for tokens, _ in whole.values())
    spent = run(sql(platform, f"SELECT currency, cost FROM spending {balance}", account))
    assert {row["currency"]: row["cost"] for row in spent} == costs

    for by in ("project", "tier", "hour"):  # the others have integration tests
        rows = platform.cli("usage", "--account", account, "--by", by)
        assert sum(row["requests"] for row in rows) == 200
        assert sum(row["input_tokens"] + row["output_tokens"] for row in rows) == enforced["tokens"]
        shown: Counter[str] = Counter()
        for row in rows:
            shown[row["currency"]] += Decimal(row["cost"])  # type: ignore[assignment]
        assert {currency: cost for currency, cost in shown.items() if currency} == costs
    unpriced_tokens = sum(row["unpriced_tokens"] for row in rows)
    requests = "uplion_billing_requests_total"  # counted a moment after the ledger has them
    counted = until_sync(lambda: (found := metric(platform))[requests] - before[requests] >= 200 and found, 30)

    def grown(name: str) -> Decimal:
        return Decimal(counted[name] - before[name])

    assert grown(requests) == 200
    kinds = ("input", "cached_input", "cache_write", "output", "reasoning")
    assert sum(grown(f'uplion_billing_tokens_total{{kind="{kind}"}}') for kind in kinds) == enforced["tokens"]
    assert grown("uplion_billing_unpriced_tokens_total") == unpriced_tokens > 0
    for currency, cost in costs.items():
        assert abs(grown(f'uplion_billing_cost_total{{currency="{currency}"}}') - cost) < Decimal("1e-9")

    for form in ("csv", "json", "focus"):
        file = tmp_path / form
        assert platform.cli("usage", "export", "--account", account, "--format", form, "-o", str(file))["bytes"]
        check_export(form, file, costs, enforced["tokens"])

    check_statement(platform, account, costs, enforced["tokens"], unpriced_tokens)


def check_export(form: str, file: Path, costs: dict[str, Decimal], tokens: int) -> None:
    rows = (
        json.loads(file.read_text())
        if form == "json"
        else list(csv.DictReader(io.StringIO(file.read_text(), newline="")))
    )
    found: dict[str, Decimal] = {}
    if form == "focus":
        for row in rows:
            found[row["BillingCurrency"]] = found.get(row["BillingCurrency"], Decimal(0)) + Decimal(row["BilledCost"])
            assert row["BillingAccountName"] == "'=Same"  # no formula
        used = sum(Decimal(row["ConsumedQuantity"]) for row in rows if row["ConsumedUnit"] == "Tokens")
        assert found.pop("XXX") == 0
        requests = [row for row in rows if row["x_UsageClass"] == "request"]
        assert sum(Decimal(row["ConsumedQuantity"]) for row in requests) == 200
        for row in rows:
            if row["ListUnitPrice"]:
                listed = Decimal(row["ListUnitPrice"]) * Decimal(row["PricingQuantity"])
                assert listed == Decimal(row["ListCost"])
    else:
        for row in rows:
            found[row["currency"]] = found.get(row["currency"], Decimal(0)) + Decimal(row["cost"])
        used = Decimal(sum(int(row["input_tokens"]) + int(row["output_tokens"]) for row in rows))
        assert found.pop("") == 0
        assert sum(int(row["requests"]) for row in rows) == 200
    assert (found, used) == (costs, tokens)


def check_statement(
    platform: Platform, account: str, costs: dict[str, Decimal], tokens: int, unpriced_tokens: int
) -> None:
    statement = platform.cli("statements", "show", account, f"{datetime.now(UTC):%Y-%m}")
    totals = {total["currency"]: total for total in statement["totals"]}
    assert {currency: Decimal(total["cost"]) for currency, total in totals.items() if currency} == costs
    used: Counter[str] = Counter()
    for part in (*statement["lines"], *statement["totals"]):
        assert sum(Decimal(charge["cost"]) for charge in part["charges"]) == Decimal(part["cost"])
    for line in statement["lines"]:
        for charge in line["charges"]:
            used[charge["class"]] += Decimal(charge["quantity"])  # type: ignore[assignment]
    kinds = ("input", "cached_input", "cache_write", "output", "reasoning")
    assert sum(used[kind] for kind in kinds) == tokens
    assert used["request"] == 200
    assert statement["unpriced_tokens"] == unpriced_tokens
    assert statement["closing_head"]["link"] > 0
    assert statement["opening_head"]["link"] == 0
