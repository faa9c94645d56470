"""Alerts: each is raised once, and sent to the webhook until it is acknowledged, also by the next process."""

import base64
import hmac
import json
import logging
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from billing.alerting.detection import Alerts, Thresholds
from billing.alerting.webhooks import Webhook, target
from common import names
from tests.kit.until import until

SECRET = "a secret of the webhook's tests"
NOW = datetime(2026, 11, 21, 14, 30, tzinfo=UTC)
THRESHOLDS = Thresholds((50, 80, 100), Decimal(5), Decimal(1), 60.0)


@contextmanager
def receiver(*answers, **headers):
    """An HTTP server that answers with these statuses in turn, then with 200; what it was sent."""
    got, waiting = [], list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(waiting.pop(0) if waiting else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook?token=topsecret", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def verify(key, headers, body):
    """As a receiver does it by the published algorithm of Standard Webhooks."""
    sent = int(headers["webhook-timestamp"])
    assert abs(sent - datetime.now(UTC).timestamp()) < 120
    signed = headers["webhook-id"].encode() + b"." + headers["webhook-timestamp"].encode() + b"." + body
    expected = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    versions = [each.split(",", 1) for each in headers["webhook-signature"].split(" ")]
    assert any(version == "v1" and hmac.compare_digest(found, expected) for version, found in versions)


@pytest.fixture
async def harness(harness):
    await harness.bus.ensure_usage_consumer()
    return harness


def alerts(harness, webhook=True):
    return Alerts(harness.bus, harness.database, THRESHOLDS, webhook=webhook)


async def stored(harness):
    rows = await harness.database.fetch("SELECT kind, level, account, subject, period FROM alerts ORDER BY id")
    return [tuple(row) for row in rows]


async def spend(harness, scope, tokens, period, model=""):
    await harness.database.execute(
        "INSERT INTO balances (account, scope, model, period, tokens, requests) VALUES ('acc', $1, $2, $3, $4, 1)"
        " ON CONFLICT (account, scope, model, period) DO UPDATE SET tokens = excluded.tokens",
        scope,
        model,
        period,
        tokens,
    )


async def test_a_budgets_shares_are_told_once_each_and_again_in_the_next_period(harness):
    account = [
        {"measure": "tokens", "period": "day", "amount": 1000},
        {"measure": "tokens", "period": "life", "amount": 1_000_000, "model": "large"},
        {"measure": "requests", "period": "minute", "amount": 1},
    ]
    project = [{"measure": "cost", "period": "month", "amount": 2_000_000, "currency": "USD"}]
    await harness.database.execute(
        "INSERT INTO accounts (id, name, limits) VALUES ('acc', 'A', $1)", json.dumps(account)
    )
    await harness.database.execute(
        "INSERT INTO projects (id, account, name, limits) VALUES ('p1', 'acc', 'P', $1)", json.dumps(project)
    )
    detection = alerts(harness)
    await spend(harness, "a", 499, "2026-11-21")
    await spend(harness, "a", 10_000_000, "life")  # of other models
    await detection.check(NOW)
    assert await stored(harness) == []
    await spend(harness, "a", 800, "2026-11-21")
    await harness.database.execute(
        "INSERT INTO spending VALUES ('acc', 'p:p1', '', '2026-11', 'USD', 2), ('acc', 'p:p1', '', '2026-11', 'EUR', 9)"
    )
    for _ in range(2):
        await detection.check(NOW)
    tokens, cost = "a/account/tokens/day/1000", "p:p1/project/cost/month/USD/2000000"
    assert await stored(harness) == [
        ("budget", "warning", "acc", f"{tokens}/50", "2026-11-21"),
        ("budget", "warning", "acc", f"{tokens}/80", "2026-11-21"),
        ("budget", "warning", "acc", f"{cost}/50", "2026-11"),
        ("budget", "warning", "acc", f"{cost}/80", "2026-11"),
        ("budget", "critical", "acc", f"{cost}/100", "2026-11"),
    ]
    await spend(harness, "a", 600, "2026-11-22")
    await detection.check(NOW + timedelta(days=1))
    assert (await stored(harness))[5:] == [("budget", "warning", "acc", f"{tokens}/50", "2026-11-22")]
    assert await harness.database.fetchval("SELECT count(*) FROM alert_outbox") == 6


async def hour(harness, hours_ago, cost, account="acc", currency="EUR", tokens=1, model="m", policy=""):
    await harness.database.execute(
        "INSERT INTO usage_hourly (hour, account, key, model, currency, policy, requests, input_tokens, cached_tokens,"
        " output_tokens, reasoning_tokens, cost) VALUES ($1, $2, 'k', $3, $4, $5, 1, $6, 0, 0, 0, $7)",
        NOW.replace(minute=0) - timedelta(hours=hours_ago),
        account,
        model,
        currency,
        policy,
        tokens,
        Decimal(cost),
    )


async def test_an_hour_out_of_the_ordinary_is_told_and_others_are_not(harness):
    for account, now in (("jump", "10.1"), ("calm", "9.9"), ("small", "0.9")):
        ordinary = Decimal("0.01") if account == "small" else Decimal(2)
        for hours_ago in (3, 5, 8, 30, 100, 167, 169):  # the last is older than a week
            await hour(harness, hours_ago, ordinary if hours_ago < 168 else 0, account)
        await hour(harness, 0, now, account)
    await hour(harness, 0, "1000", "new")  # nothing to compare it with
    await hour(harness, 1, "11", "jump", "USD")
    await alerts(harness, webhook=False).check(NOW)
    assert await stored(harness) == [("anomaly", "warning", "jump", "EUR", "2026-11-21T14")]
    assert await harness.database.fetchval("SELECT count(*) FROM alert_outbox") == 0


async def test_what_has_no_price_waits_or_is_dead_is_told(harness):
    await hour(harness, 2, 0, currency="", tokens=7, model="free?")
    await hour(harness, 2, 0, currency="", tokens=9, model="waived", policy="waived")
    await hour(harness, 20, 0, currency="", tokens=9, model="yesterday")
    await harness.publish(b"waits")
    await harness.bus.publish(names.dead_subject(names.STREAM_USAGE), b"dead")
    later = datetime.now(UTC) + timedelta(hours=1)
    detection = alerts(harness)
    await detection.check(NOW)
    assert next(row[:4] for row in await stored(harness)) == ("unpriced", "critical", "", "free?")
    await detection.check(later)
    found = {(row[0], row[3]) for row in await stored(harness)}
    assert found == {("unpriced", "free?"), ("lag", "USAGE"), ("dead", "DEAD")}


async def test_the_webhook_is_told_signed_once_and_after_failures_again(harness, caplog):
    caplog.set_level(logging.DEBUG)
    await hour(harness, 2, 0, currency="", tokens=7)
    await hour(harness, 2, 0, currency="", tokens=7, model="other")
    await alerts(harness).check(NOW)
    later = "UPDATE alert_outbox SET next_time = now()"
    with receiver(500, 302, location="/elsewhere") as (url, got):
        for _ in range(4):  # as four processes, one after the other
            await Webhook(harness.database, target(url, SECRET)).deliver()
            await harness.database.execute(later)
        assert await harness.database.fetchval("SELECT count(*) FROM alert_outbox") == 0
    assert {path for path, _, _ in got} == {"/hook?token=topsecret"}
    bodies = [json.loads(body) for _, _, body in got]
    assert sorted({body["subject"] for body in bodies}) == ["m", "other"]
    assert bodies[-1]["facts"]["tokens"] == 7
    for _, sent, body in got:
        verify(SECRET.encode(), sent, body)
    ids = [(sent["webhook-id"], json.loads(body)["id"]) for _, sent, body in got]
    assert len(ids) == 4
    assert len(set(ids)) == len({webhook_id for webhook_id, _ in ids}) == 2, "an alert keeps its id when it is retried"
    assert SECRET not in caplog.text
    assert "topsecret" not in caplog.text


async def test_a_webhook_that_is_away_is_tried_less_and_less_often(harness):
    await hour(harness, 2, 0, currency="", tokens=7)
    await alerts(harness).check(NOW)
    with receiver() as (url, _):
        pass
    webhook = Webhook(harness.database, target(url, SECRET))
    waits = []
    for _ in range(3):
        await webhook.deliver()
        waits.append(await harness.database.fetchval("SELECT extract(epoch FROM next_time - now()) FROM alert_outbox"))
        await webhook.deliver()  # not due
        await harness.database.execute("UPDATE alert_outbox SET next_time = now()")
    assert [round(float(wait) / 10) for wait in waits] == [1, 2, 4]
    assert await harness.database.fetchval("SELECT tries FROM alert_outbox") == 3


@pytest.mark.parametrize("url", ["ftp://host/", "http://", "http://user@host/", "https://host/#x", "host/path"])
def test_an_address_that_cannot_be_used_is_refused_without_being_told(url):
    with pytest.raises(ValueError, match="webhook") as refused:
        target(url, SECRET)
    assert url not in str(refused.value)
    for secret in (None, "short"):
        with pytest.raises(ValueError, match="secret"):
            target("https://host/", secret)


async def test_billing_tells_by_itself(harness):
    await hour(harness, 0, 0, currency="", tokens=7)
    await harness.database.execute("UPDATE usage_hourly SET hour = date_trunc('hour', now())")
    with receiver() as (url, got):
        harness.settings = replace(harness.settings, alert_webhook_url=url, alert_webhook_secret=SECRET)
        async with harness.billing():
            await until(lambda: bool(got))
    assert json.loads(got[0][2])["kind"] == "unpriced"
