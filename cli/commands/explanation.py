"""`uplion explain`: what became of one request, in sentences."""

from collections.abc import Iterator

from google.protobuf.duration_pb2 import Duration
from uplion.billing.v1.usage_event_pb2 import AttemptStatus
from uplion.control.v1 import request_pb2
from uplion.control.v1.request_service_pb2_grpc import RequestServiceStub
from uplion.inference.v1.sampling_pb2 import FinishReason

from cli.client.connection import Admin, shown_time
from cli.output import JsonObject
from common.errors import Reason
from ledger.limits import KINDS, MONEY, NO_PERIOD
from ledger.usage_columns import DURATIONS, TOKEN_COLUMNS

_MILLIONTHS = 1_000_000
_UNITS = {kind.measure: kind.noun for kind in KINDS}
_TRY_AGAIN = Reason.RATE_LIMIT_EXCEEDED.name  # of a budget: its rest is reserved, not spent
_WHOSE = {"account": "the account", "project": "the project", "key": "the key"}
_POLICIES = {"waived": "not billed, by the account's policy", "input_only": "only its input billed, by policy"}


def request(api: Admin, request_id: str) -> JsonObject:
    """authz's decision and the billed attempts of a request."""
    asked = request_pb2.GetRequestRequest(request_id=request_id)
    found = api.call(api.stub(RequestServiceStub).GetRequest, asked)
    return {
        **{
            name: getattr(found, name)
            for name in ("request_id", "account", "project", "key", "model", "operation", "tier")
        },
        "decision": _decision(found.decision) if found.HasField("decision") else None,
        "attempts": [_attempt(attempt) for attempt in found.attempts],
    }


def sentences(found: JsonObject) -> Iterator[str]:
    """The same in human-readable sentences, one a line."""
    whose = f"account {found['account']}"
    if found["project"]:
        whose += f", project {found['project']}"
    model = f" for {found['model']}" if found["model"] else ""
    yield f"{found['request_id']}: {found['operation'] or 'a request'}{model}, by key {found['key']} of {whose}"
    decision, attempts = found["decision"], found["attempts"]
    if decision is not None:
        yield from _decided(decision)
    for attempt in attempts:
        yield _billed(attempt)
    if not attempts and (decision is None or decision["shadow"]):
        yield "It has not ended, or the ledger has not been told yet."


def _decided(decision: JsonObject) -> Iterator[str]:
    would = "would have refused it, had it not been in shadow" if decision["shadow"] else "refused it"
    if not decision["rule"]:
        yield f"{decision['time']}: refused, {decision['reason']}; nothing was billed"
        return
    yield f"{decision['time']}: the rule {decision['rule']} {would} ({decision['reason']})"
    window = f" a {decision['period']}" if decision["period"] in ("minute", "day", "month") else ""
    owner = _WHOSE.get(decision["level"], decision["level"])
    if decision["limit"] is not None:
        left = "" if decision["balance"] is None else f", of which it had {_amount(decision, 'balance')} left"
        yield f"  it grants {owner} {_amount(decision, 'limit')}{window}{left}"
    if decision["clear_time"]:
        yield f"  it clears at {decision['clear_time']}"
    elif decision["measure"] in NO_PERIOD:
        yield "  it clears as soon as one of the others ends"
    elif decision["reason"] == _TRY_AGAIN:
        yield "  it clears when requests that ran then give back what they do not use"
    else:
        yield "  it does not clear by itself"
    if decision["retry_after_seconds"] is not None and not decision["shadow"]:
        yield f"  the answer said to try again in {decision['retry_after_seconds']:.1f} s"


def _amount(decision: JsonObject, name: str) -> str:
    value, measure = decision[name], decision["measure"]
    if measure not in MONEY:
        return f"{value} {_UNITS.get(measure, measure)}"
    parts = decision["rule"].split("/")  # key/cost/day/USD
    return f"{value / _MILLIONTHS:.6f}".rstrip("0").rstrip(".") + f" {parts[3] if len(parts) > 3 else ''}".rstrip()


def _billed(attempt: JsonObject) -> str:
    words = [f"attempt {attempt['attempt']}: {attempt['status'].replace('_', ' ')}"]
    if attempt["error_reason"]:
        words[0] += f" ({attempt['error_reason']})"
    elif attempt["finish_reason"]:
        words[0] += f" ({attempt['finish_reason']})"
    if attempt["provider"]:
        words[0] += f" on {attempt['provider']}"
    cached = f" ({attempt['cached_tokens']} cached)" if attempt["cached_tokens"] else ""
    words.append(f"{attempt['input_tokens']} tokens in{cached}, {attempt['output_tokens']} out")
    for name, what in (
        ("queue_seconds", "queued"),
        ("duration_seconds", "in all"),
        ("compute_seconds", "of an engine"),
    ):
        if attempt[name] is not None:
            words.append(f"{attempt[name]:.3f} s {what}")
    if policy := str(attempt["policy"]):
        words.append(_POLICIES.get(policy, policy))
    if attempt["price_version"] is not None:
        words.append(f"{attempt['cost']} {attempt['currency']} by version {attempt['price_version']} of the price")
    elif attempt["policy"] != "waived":
        words.append("no price")
    return ", ".join(words)


def _decision(decision: request_pb2.Decision) -> JsonObject:
    return {
        "time": shown_time(decision, "time"),
        **{name: getattr(decision, name) for name in ("reason", "rule", "level", "measure", "period", "shadow")},
        "limit": decision.limit if decision.HasField("limit") else None,
        "balance": decision.balance if decision.HasField("balance") else None,
        "clear_time": shown_time(decision, "clear_time"),
        "retry_after_seconds": _seconds(decision, "retry_delay"),
    }


def _attempt(attempt: request_pb2.Attempt) -> JsonObject:
    finish = FinishReason.Name(attempt.finish_reason).removeprefix("FINISH_REASON_").lower()
    return {
        "attempt": attempt.attempt,
        "status": AttemptStatus.Name(attempt.status).removeprefix("ATTEMPT_STATUS_").lower(),
        "finish_reason": finish if attempt.finish_reason else "",
        **{name: getattr(attempt, name) for name in ("error_reason", "model_served", "provider", "policy")},
        **{name: getattr(attempt.usage, name) for name in TOKEN_COLUMNS},
        **{each.column: _seconds(attempt, each.field) for each in DURATIONS},
        "end_time": shown_time(attempt, "end_time"),
        "price_version": attempt.price_version if attempt.HasField("price_version") else None,
        "cost": attempt.cost or None,
        "currency": attempt.currency or None,
    }


def _seconds(found: request_pb2.Attempt | request_pb2.Decision, field: str) -> float | None:
    if not found.HasField(field):  # type: ignore[arg-type]  # one of the literal names
        return None
    duration: Duration = getattr(found, field)
    return duration.ToMicroseconds() / 1e6
