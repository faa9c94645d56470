"""What became of a request, over the real admin API: decisions as authz publishes them, rows as billing writes them."""

import uuid
from datetime import UTC, date, datetime

import pytest
from uplion.billing.v1.usage_event_pb2 import AttemptStatus
from uplion.control.v1.request_pb2 import GetRequestRequest
from uplion.control.v1.request_service_pb2_grpc import RequestServiceStub
from uplion.inference.v1.sampling_pb2 import FinishReason

from common.errors import Reason
from common.names import HEADER_ACCOUNT, HEADER_KEY, HEADER_SCOPES, decision_subject
from messaging import decisions
from messaging.decisions import Decision

NOW = datetime(2026, 11, 21, 3, 0, 0, 250_000, UTC)
MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC)
COLUMNS = {
    "month": date(2026, 11, 1),
    "account": "acme",
    "project": "prj",
    "key": "k1",
    "model": "large",
    "model_served": "large",
    "model_revision": 1,
    "provider": "transformers",
    "lane": "default",
    "tier": "default",
    "operation": "chat",
    "status": "completed",
    "finish_reason": "length",
    "error_reason": "",
    "input_tokens": 10,
    "cached_tokens": 4,
    "output_tokens": 5,
    "reasoning_tokens": 0,
    "duration_seconds": 1.5,
    "compute_seconds": 0.25,
    "end_time": NOW,
    "last": True,
    "reservation": "r",
}


def admin(account, scopes="admin:read"):
    return ((HEADER_ACCOUNT, account), (HEADER_KEY, "0123456789ab"), (HEADER_SCOPES, scopes))


OPERATOR = admin("default", "admin")


@pytest.fixture
def explain(control):
    stub = RequestServiceStub(control.channel)

    class Explain:
        async def __call__(self, request_id, metadata=OPERATOR):
            return await control.call(stub.GetRequest, GetRequestRequest(request_id=request_id), metadata)

        async def refusal(self, request_id, metadata=OPERATOR):
            return await control.refusal(stub.GetRequest, GetRequestRequest(request_id=request_id), metadata)

    return Explain()


async def publish(bus, request_id, **fields):
    decision = Decision(
        **{
            "request_id": request_id,
            "time": NOW,
            "reason": "INSUFFICIENT_QUOTA",
            "account": "acme",
            "project": "prj",
            "key": "k1",
            "model": "large",
            "rule": "key/tokens/day",
            "level": "key",
            "measure": "tokens",
            "period": "day",
            "limit": 1000,
            "balance": 3,
            "clears_at": MIDNIGHT,
            **fields,
        }
    )
    await bus.js.publish(decision_subject(request_id), decisions.encode(decision))


async def write(database, request_id, attempt=1, **changes):
    row = {"request_id": request_id, "attempt": attempt, **COLUMNS, **changes}
    await database.execute("SELECT ensure_usage_partition($1)", row["month"])
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    await database.execute(f"INSERT INTO usage_events ({', '.join(row)}) VALUES ({places})", *row.values())


async def test_a_refusal_names_its_rule_window_balance_and_when_it_clears(explain, bus):
    request_id = str(uuid.uuid4())
    await publish(bus, request_id, rule="account/cost/month/USD", shadow=True)
    await publish(bus, request_id)  # the last one counts
    found = await explain(request_id)
    assert (found.account, found.project, found.key, found.model) == ("acme", "prj", "k1", "large")
    decision = found.decision
    assert (decision.reason, decision.rule, decision.shadow) == ("INSUFFICIENT_QUOTA", "key/tokens/day", False)
    assert (decision.level, decision.measure, decision.period) == ("key", "tokens", "day")
    assert (decision.limit, decision.balance) == (1000, 3)
    assert decision.time.ToDatetime(UTC) == NOW
    assert decision.clear_time.ToDatetime(UTC) == MIDNIGHT
    assert not decision.HasField("retry_delay")
    assert not found.attempts


async def test_a_refusal_that_was_to_be_retried_says_after_how_long(explain, bus):
    request_id = str(uuid.uuid4())
    await publish(bus, request_id, reason="RATE_LIMIT_EXCEEDED", clears_at=None, retry_after_seconds=0.25)
    decision = (await explain(request_id)).decision
    assert (decision.retry_delay.ToMilliseconds(), decision.HasField("clear_time")) == (250, False)


async def test_what_was_billed_is_told_attempt_by_attempt_beside_what_a_shadow_rule_said(explain, bus, database):
    request_id = str(uuid.uuid4())
    await publish(bus, request_id, shadow=True, clears_at=None, balance=None)
    await write(
        database, request_id, 1, status="worker_lost", error_reason="WORKER_LOST", finish_reason="", policy="waived"
    )
    await write(database, request_id, 2, price_version=7, cost="0.000123", currency="USD")
    found = await explain(request_id)
    assert found.decision.shadow
    assert not found.decision.HasField("clear_time")
    assert not found.decision.HasField("balance")
    assert (found.operation, found.tier) == ("chat", "default")
    lost, completed = found.attempts
    assert (lost.attempt, lost.status) == (1, AttemptStatus.ATTEMPT_STATUS_WORKER_LOST)
    assert (lost.error_reason, lost.policy, lost.HasField("price_version"), lost.cost) == (
        "WORKER_LOST",
        "waived",
        False,
        "",
    )
    assert (completed.attempt, completed.status) == (2, AttemptStatus.ATTEMPT_STATUS_COMPLETED)
    assert completed.finish_reason == FinishReason.FINISH_REASON_LENGTH
    assert (completed.usage.input_tokens, completed.usage.cached_tokens, completed.usage.output_tokens) == (10, 4, 5)
    assert (completed.price_version, completed.cost, completed.currency) == (7, "0.000123", "USD")
    assert completed.compute_duration.ToMilliseconds() == 250
    assert completed.duration.ToMilliseconds() == 1500
    assert not completed.HasField("queue_duration")
    assert completed.end_time.ToDatetime(UTC) == NOW


async def test_an_accounts_admin_is_told_of_its_own_accounts_requests_only(explain, bus, database):
    refused, billed = str(uuid.uuid4()), str(uuid.uuid4())
    await publish(bus, refused)
    await write(database, billed)
    for request_id in (refused, billed):
        assert (await explain(request_id, admin("acme"))).account == "acme"
        other = await explain.refusal(request_id, admin("other"))
        nothing = await explain.refusal(str(uuid.uuid4()), admin("other"))
        assert other.reason is nothing.reason is Reason.NOT_FOUND
        assert len(other.message) == len(nothing.message)  # the same words but for the id


async def test_what_nobody_knows_is_not_found_with_a_hint(explain):
    error = await explain.refusal(str(uuid.uuid4()))
    assert error.reason is Reason.NOT_FOUND
    assert "a second behind" in error.message
    assert "a week" in error.message
    for request_id in ("", "x" * 201, "a\nb"):
        assert (await explain.refusal(request_id)).reason is Reason.INVALID_REQUEST
