"""RequestService: explains one request by authz's decision and the billed attempts."""

from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from uplion.billing.v1.usage_event_pb2 import AttemptStatus
from uplion.control.v1 import request_pb2, request_service_pb2_grpc
from uplion.inference.v1.sampling_pb2 import FinishReason, TokenUsage

from common.errors import Reason, UplionError
from control.requests import fields
from control.requests.caller import Caller
from control.stores.attempts import AttemptStore
from control.stores.decision_log import DecisionLog
from ledger.usage_columns import DURATIONS, TOKEN_COLUMNS
from messaging.decisions import Decision

if TYPE_CHECKING:
    import asyncpg

    from control.requests.caller import Context

_REQUEST_ID_CHARACTERS = 200


class RequestService(request_service_pb2_grpc.RequestServiceServicer):
    """Joins authz's decisions with the ledger."""

    def __init__(self, attempts: AttemptStore, decisions: DecisionLog) -> None:
        self._attempts = attempts
        self._decisions = decisions

    async def GetRequest(
        self, request: request_pb2.GetRequestRequest, context: "Context"
    ) -> request_pb2.GetRequestResponse:
        within = Caller.current().within
        request_id = fields.text("request_id", request.request_id, least=1, most=_REQUEST_ID_CHARACTERS)
        rows = await self._attempts.of_request(request_id)
        decision = await self._decisions.of_request(request_id)
        if within is not None:
            rows = [row for row in rows if row["account"] == within]
            decision = decision if decision is not None and decision.account == within else None
        if not rows and decision is None:
            raise UplionError(
                Reason.NOT_FOUND,
                f"Nothing is known of a request {request_id!r}. The ledger is about a second behind, refusals are kept "
                "for a week, and refusals of unknown keys are not recorded.",
                param="request_id",
            )
        return explained(request_id, decision, rows)


def explained(
    request_id: str, decision: Decision | None, rows: "list[asyncpg.Record]"
) -> request_pb2.GetRequestResponse:
    """The answer: account, key and model are from the ledger, or else from the decision."""
    answer = request_pb2.GetRequestResponse(request_id=request_id, attempts=map(_attempt, rows))
    if rows:
        for name in ("account", "project", "key", "model", "operation", "tier"):
            setattr(answer, name, rows[-1][name])
    if decision is not None:
        if not rows:
            for name in ("account", "project", "key", "model"):
                setattr(answer, name, getattr(decision, name))
        answer.decision.CopyFrom(_decided(decision))
    return answer


def _decided(decision: Decision) -> request_pb2.Decision:
    made = request_pb2.Decision(
        reason=decision.reason,
        rule=decision.rule,
        level=decision.level,
        measure=decision.measure,
        period=decision.period,
        limit=decision.limit,
        balance=decision.balance,
        shadow=decision.shadow,
    )
    made.time.FromDatetime(decision.time)
    if decision.clears_at is not None:
        made.clear_time.FromDatetime(decision.clears_at)
    if decision.retry_after_seconds is not None:
        made.retry_delay.FromMilliseconds(round(decision.retry_after_seconds * 1000))
    return made


def _attempt(row: "asyncpg.Record") -> request_pb2.Attempt:
    made = request_pb2.Attempt(
        attempt=row["attempt"],
        status=AttemptStatus.Value(f"ATTEMPT_STATUS_{row['status'].upper()}"),
        finish_reason=_finish(row["finish_reason"]),
        error_reason=row["error_reason"],
        model_served=row["model_served"],
        provider=row["provider"],
        usage=TokenUsage(**{name: row[name] for name in TOKEN_COLUMNS}),
        price_version=row["price_version"],
        cost="" if row["cost"] is None else fields.decimal_text(row["cost"]),
        currency=row["currency"] or "",
        policy=row["policy"],
    )
    made.end_time.FromDatetime(row["end_time"])
    for each in DURATIONS:
        if row[each.column] is not None:
            duration: Duration = getattr(made, each.field)
            duration.FromMicroseconds(round(row[each.column] * 1_000_000))
    return made


def _finish(word: str) -> FinishReason.ValueType:
    """A finish reason of a worker newer than this service is left unset."""
    name = f"FINISH_REASON_{word.upper() or 'UNSPECIFIED'}"
    known = name in FinishReason.DESCRIPTOR.values_by_name
    return FinishReason.Value(name) if known else FinishReason.FINISH_REASON_UNSPECIFIED
