"""What `uplion explain` says."""

from typing import Any

from cli.commands.explanation import sentences

REFUSED = {
    "request_id": "r1",
    "account": "acme",
    "project": "prj",
    "key": "k1",
    "model": "large",
    "operation": "",
    "tier": "",
    "attempts": [],
}
DECISION: dict[str, Any] = {
    "time": "2026-11-21T03:00:00Z",
    "reason": "INSUFFICIENT_QUOTA",
    "rule": "key/cost/day/USD",
    "level": "key",
    "measure": "cost",
    "period": "day",
    "shadow": False,
    "limit": 2_500_000,
    "balance": 400,
    "clear_time": "2026-11-22T00:00:00Z",
    "retry_after_seconds": None,
}
ATTEMPT = {
    "attempt": 1,
    "status": "completed",
    "finish_reason": "stop",
    "error_reason": "",
    "model_served": "large",
    "provider": "transformers",
    "policy": "",
    "input_tokens": 10,
    "cached_tokens": 4,
    "output_tokens": 5,
    "queue_seconds": 0.25,
    "duration_seconds": 1.5,
    "compute_seconds": None,
    "price_version": 7,
    "cost": "0.000123",
    "currency": "USD",
}


def test_a_refusal_says_rule_window_balance_and_when_it_clears() -> None:
    assert list(sentences({**REFUSED, "decision": DECISION})) == [
        "r1: a request for large, by key k1 of account acme, project prj",
        "2026-11-21T03:00:00Z: the rule key/cost/day/USD refused it (INSUFFICIENT_QUOTA)",
        "  it grants the key 2.5 USD a day, of which it had 0.0004 USD left",
        "  it clears at 2026-11-22T00:00:00Z",
    ]


def test_a_shadow_rule_did_not_stop_what_was_billed() -> None:
    found: dict[str, Any] = {
        **REFUSED,
        "project": "",
        "operation": "chat",
        "decision": {
            **DECISION,
            "shadow": True,
            "measure": "concurrency",
            "period": "",
            "limit": 2,
            "clear_time": None,
        },
        "attempts": [
            {**ATTEMPT, "status": "worker_lost", "error_reason": "WORKER_LOST", "provider": "", "policy": "waived"}
            | {"price_version": None, "queue_seconds": None, "duration_seconds": None},
            {**ATTEMPT, "attempt": 2},
        ],
    }
    assert list(sentences(found)) == [
        "r1: chat for large, by key k1 of account acme",
        "2026-11-21T03:00:00Z: the rule key/cost/day/USD would have refused it, had it not been in shadow"
        " (INSUFFICIENT_QUOTA)",
        "  it grants the key 2 requests at once, of which it had 400 requests at once left",
        "  it clears as soon as one of the others ends",
        "attempt 1: worker lost (WORKER_LOST), 10 tokens in (4 cached), 5 out, not billed, by the account's policy",
        "attempt 2: completed (stop) on transformers, 10 tokens in (4 cached), 5 out, 0.250 s queued, 1.500 s in all,"
        " 0.000123 USD by version 7 of the price",
    ]


def test_a_refusal_without_a_rule_and_a_request_still_under_way() -> None:
    other = {**DECISION, "rule": "", "reason": "PERMISSION_DENIED"}
    assert list(sentences({**REFUSED, "decision": other}))[1:] == [
        "2026-11-21T03:00:00Z: refused, PERMISSION_DENIED; nothing was billed"
    ]
    shadow = list(sentences({**REFUSED, "decision": {**DECISION, "shadow": True}}))
    assert shadow[-1] == "It has not ended, or the ledger has not been told yet."


def test_a_budget_that_is_reserved_but_not_spent_clears_as_the_answer_said() -> None:
    decision = {**DECISION, "reason": "RATE_LIMIT_EXCEEDED", "clear_time": None, "retry_after_seconds": 0.5}
    assert list(sentences({**REFUSED, "decision": decision}))[-2:] == [
        "  it clears when requests that ran then give back what they do not use",
        "  the answer said to try again in 0.5 s",
    ]


def test_a_budget_for_life_that_is_spent_does_not_clear() -> None:
    decision = {**DECISION, "rule": "key/cost/life/USD", "period": "life", "clear_time": None}
    assert list(sentences({**REFUSED, "decision": decision}))[-1] == "  it does not clear by itself"
