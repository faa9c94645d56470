"""What a refused caller gets, what is recorded of the refusal, and what a key may not be used for."""

import asyncio
import re
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

import nats.errors
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

from authz.events.last_used import LastUsed
from authz.metrics import AUTHZ_SHADOW_REFUSALS
from common import names
from messaging.bus import Bus, connect_bus
from messaging.decisions import Decision, decode
from tests.integration.authz.rules import at_once, cost, requests, tokens
from tests.kit.until import until

NATIVE = "/uplion.inference.v1.InferenceService/Chat"


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    async with connect_bus(nats_url, "test") as connected:
        await connected.ensure_streams()
        yield connected


async def decision(bus: Bus, request_id: str) -> Decision:
    """As `uplion explain` reads it."""

    async def stored() -> Decision:
        found = await bus.js.get_last_msg(names.STREAM_DECISIONS, names.decision_subject(request_id))
        return decode(found.data or b"")

    found: Decision = await until(stored, ignoring=(nats.errors.Error, TimeoutError))
    return found


async def test_each_refusal_names_its_rule_what_is_left_and_when_it_clears(authz: Any, bus: Bus) -> None:
    await authz.add_account(requests(2), tokens(1_000, "day"))
    key = await authz.add_key()
    for _ in range(2):
        assert (await authz.check(key.text, facts={"max_tokens": 10})).status == 200
    answer = await authz.check(key.text)
    assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
    assert "2 requests a minute" in answer.error_text
    assert "account/requests/minute" in answer.error_text
    assert answer.headers["x-ratelimit-limit-requests"] == "2"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert answer.headers["x-ratelimit-remaining-tokens"] == str(1_000 - 220)
    found = await decision(bus, answer.request_id)
    assert (found.reason, found.rule, found.account, found.key) == (
        "RATE_LIMIT_EXCEEDED",
        "account/requests/minute",
        authz.account,
        key.id,
    )
    assert (found.level, found.measure, found.period, found.limit, found.balance) == (
        "account",
        "requests",
        "minute",
        2,
        0,
    )
    assert found.clears_at is not None
    assert found.retry_after_seconds is not None
    assert abs(found.retry_after_seconds - float(answer.headers["retry-after-ms"]) / 1000) < 0.001
    assert not found.shadow


async def test_a_spent_budget_is_not_to_be_retried_and_says_when_it_starts_again(authz: Any) -> None:
    await authz.add_account(tokens(50, "month"))
    key = await authz.add_key()
    answer = await authz.check(key.text)
    assert (answer.status, answer.code) == (429, "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert "50 tokens a month of the account has 50 left (account/tokens/month)" in answer.error_text
    assert "starts again at" in answer.error_text
    assert re.fullmatch(r"(\d+h)?(\d+m)?[\d.]+m?s", answer.headers["x-ratelimit-reset-tokens"])


def in_seconds(text: str) -> float:
    """A duration in Go's form."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|h|m|s)", text))


async def test_a_reset_is_when_the_whole_limit_is_there_again(authz: Any) -> None:
    """From the first request of a window on: 60 whole seconds after the last one, and the rest of its second."""
    await authz.add_account(requests(3), tokens(10_000, "minute"))
    key = await authz.add_key()
    path, method = "/v1/models", "GET"
    found = [await authz.check(key.text), await authz.check(key.text, path=path, method=method)]
    found += [await authz.check(key.text), await authz.check(key.text)]
    assert [each.status for each in found] == [200, 200, 200, 429]
    for each in found:
        headers = each.told if each.status == 200 else each.headers
        assert 30 < in_seconds(headers["x-ratelimit-reset-requests"]) <= 61
        if "x-ratelimit-reset-tokens" in headers:  # a reading takes none
            assert 30 < in_seconds(headers["x-ratelimit-reset-tokens"]) <= 61


async def test_of_a_budget_that_is_reserved_the_log_says_what_the_answer_said(authz: Any, bus: Bus) -> None:
    """It is not spent: `uplion explain` must not call it final."""
    await authz.add_account(tokens(150, "life"))
    key = await authz.add_key()
    assert (await authz.check(key.text)).status == 200
    answer = await authz.check(key.text)
    assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
    assert "until requests that run now give back" in answer.error_text
    found = await decision(bus, answer.request_id)
    assert (found.reason, found.rule, found.clears_at) == ("RATE_LIMIT_EXCEEDED", "account/tokens/life", None)
    assert found.retry_after_seconds == float(answer.headers["retry-after-ms"]) / 1000


async def test_native_callers_get_the_same_in_grpc_details(authz: Any) -> None:
    await authz.add_account(requests(0))
    key = await authz.add_key()
    answer = await authz.check(key.text, path=NATIVE, headers={"content-type": "application/grpc"})
    text = answer.headers["grpc-status-details-bin"]
    status = Status.FromString(b64decode(text + "=" * (-len(text) % 4)))
    found = {detail.TypeName(): detail for detail in status.details}
    info, retry, quota = ErrorInfo(), RetryInfo(), QuotaFailure()
    assert found["google.rpc.ErrorInfo"].Unpack(info)
    assert found["google.rpc.RetryInfo"].Unpack(retry)
    assert found["google.rpc.QuotaFailure"].Unpack(quota)
    assert info.reason == "RATE_LIMIT_EXCEEDED"
    assert (info.metadata["rule"], info.metadata["limit"], info.metadata["remaining"]) == (
        "account/requests/minute",
        "0",
        "0",
    )
    assert info.metadata["clears_at"]
    assert retry.retry_delay.seconds == 61
    assert quota.violations[0].subject == "account/requests/minute"


async def test_a_rule_in_shadow_is_counted_and_explained_and_refuses_nobody(authz: Any, bus: Bus) -> None:
    await authz.add_account(requests(0, shadow=True))
    key = await authz.add_key()
    counted = AUTHZ_SHADOW_REFUSALS.labels("requests", "minute")
    before = counted._value.get()
    answer = await authz.check(key.text)
    assert answer.status == 200
    assert answer.told == {}
    assert counted._value.get() == before + 1
    found = await decision(bus, answer.request_id)
    assert (found.rule, found.shadow) == ("account/requests/minute", True)


async def test_models_networks_and_tiers_a_key_may_not_use_are_403(authz: Any, bus: Bus) -> None:
    await authz.add_account()
    key = await authz.add_key(
        models=["org/*", "small-?"], networks=["10.1.0.0/16", "2001:db8::/32"], tiers=["batch", "fast"]
    )
    inside = {"headers": {names.HEADER_CLIENT: "10.1.2.3"}}
    for model in ("org/x.v1", "small-1"):
        answer = await authz.check(key.text, model=model, **inside)
        assert (answer.status, answer.headers["x-uplion-tier"]) == (200, "batch")
    for model in ("small-12", "other", "xorg/y"):
        answer = await authz.check(key.text, model=model, **inside)
        assert (answer.status, answer.code) == (403, "model_not_allowed"), model
    assert (await decision(bus, answer.request_id)).reason == "MODEL_NOT_ALLOWED"
    answer = await authz.check(key.text, path="/v1/models", method="GET", **inside)
    assert answer.headers["x-uplion-limits"] == "models=org%2F%2A,small-%3F"  # the router shows no others
    for address in ("10.2.0.1", "", "nonsense", "2001:db9::1"):
        answer = await authz.check(key.text, model="small-1", headers={names.HEADER_CLIENT: address})
        assert (answer.status, answer.code) == (403, "permission_denied"), address
    for address in ("2001:db8::5", "::ffff:10.1.0.9"):
        answer = await authz.check(key.text, model="small-1", headers={names.HEADER_CLIENT: address})
        assert answer.status == 200, address
    for wanted, status in (("fast", 200), ("auto", 200), ("slow", 403)):
        answer = await authz.check(key.text, model="small-1", facts={"service_tier": wanted}, **inside)
        assert answer.status == status, wanted


async def test_a_suspended_project_stops_its_keys_and_no_others(authz: Any) -> None:
    await authz.add_account()
    project = await authz.add_project()
    inside, outside = await authz.add_key(project=project), await authz.add_key()
    await authz.database.execute("UPDATE projects SET state = 'suspended' WHERE id = $1", project)
    assert (await authz.check(inside.text)).status == 401
    assert (await authz.check(outside.text)).status == 200


async def test_who_calls_is_passed_on_with_project_and_scopes(authz: Any) -> None:
    await authz.add_account()
    project = await authz.add_project()
    reader = await authz.add_key(project=project, scopes=["admin:read"])
    answer = await authz.check(reader.text, listener="admin", path="/admin/v1/keys", method="GET")
    assert (answer.status, answer.headers["x-uplion-scopes"]) == (200, "admin:read")
    assert answer.headers["x-uplion-project"] == project
    assert (await authz.check(reader.text)).status == 403


async def test_an_admins_change_of_a_limit_applies_at_once(authz: Any, announce: Any) -> None:
    await authz.add_account(requests(1))
    key = await authz.add_key()
    assert [(await authz.check(key.text)).status for _ in range(2)] == [200, 429]
    await authz.set_limits("accounts", authz.account, requests(1_000))
    await announce(f"account:{authz.account}")
    await authz.until_status(key.text, 200)


async def test_an_announced_price_counts_at_once(authz: Any, announce: Any) -> None:
    await authz.add_account(cost(0.000_05))
    key = await authz.add_key()
    model = f"m-{authz.account}"
    assert (await authz.check(key.text, model=model, facts={"max_tokens": 90})).limits == {"holds_slot": "1"}
    await authz.database.execute(
        "INSERT INTO prices (model, effective_from, currency, input_per_million_tokens, output_per_million_tokens)"
        " VALUES ($1, now(), 'USD', 0.2, 1)",
        model,
    )
    await announce("prices:")

    async def limits() -> Any:
        found = (await authz.check(key.text, model=model, facts={"max_tokens": 90})).limits
        return "capped_by" in found and found

    capped = {"max_output_tokens": "30", "capped_by": "account/cost/life/USD"}
    assert await until(limits) == {**capped, "holds_slot": "1"}


async def test_the_end_of_a_request_frees_its_slot(authz: Any, bus: Bus) -> None:
    await authz.add_account(at_once(1))
    key = await authz.add_key()
    first = await authz.check(key.text)
    assert first.limits == {"holds_slot": "1", "slots_scarce": "1"}
    assert (await authz.check(key.text)).headers["retry-after-ms"] == "1000"
    await bus.publish_core(names.SUBJECT_RELEASE, f"{authz.account} {first.headers['x-uplion-reservation']}".encode())
    await authz.until_status(key.text, 200)


async def test_used_keys_are_told_in_batches(bus: Bus) -> None:
    heard = await bus.subscribe(names.SUBJECT_LAST_USED)
    last_used = LastUsed(bus, every_seconds=0.05)
    for number in range(2_500):
        last_used.add(f"key{number % 2_300}")
    running = asyncio.create_task(last_used.run())
    try:
        found: list[str] = []
        while len(found) < 2_300:
            found += (await heard.next_msg(timeout=60)).data.decode().split()
        assert sorted(found) == sorted(f"key{number}" for number in range(2_300))
    finally:
        running.cancel()
        await heard.unsubscribe()
