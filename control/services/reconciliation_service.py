"""ReconciliationService: reads billing's last reconciliation, or requests one."""

from typing import TYPE_CHECKING

import nats.errors
from google.protobuf import json_format
from uplion.billing.v1.reconciliation_pb2 import Reconciliation
from uplion.control.v1 import reconciliation_service_pb2 as messages
from uplion.control.v1.reconciliation_service_pb2_grpc import ReconciliationServiceServicer

from common import names
from common.errors import Reason, UplionError
from control.stores.reconciliations import ReconciliationStore
from messaging.bus import Bus

if TYPE_CHECKING:
    from control.requests.caller import Context

_RUN_SECONDS = 600.0
_RETRY_SECONDS = 5.0


class ReconciliationService(ReconciliationServiceServicer):
    """The last run from Postgres; a new one by a request over NATS."""

    def __init__(self, store: ReconciliationStore, bus: Bus) -> None:
        self._store = store
        self._bus = bus

    async def GetReconciliation(
        self, request: messages.GetReconciliationRequest, context: "Context"
    ) -> messages.GetReconciliationResponse:
        report = await self._store.latest()
        if report is None:
            raise UplionError(Reason.NOT_FOUND, "Nothing was reconciled yet.")
        found = json_format.Parse(report, Reconciliation(), ignore_unknown_fields=True)
        return messages.GetReconciliationResponse(reconciliation=found)

    async def RunReconciliation(
        self, request: messages.RunReconciliationRequest, context: "Context"
    ) -> messages.RunReconciliationResponse:
        left = context.time_remaining()
        seconds = _RUN_SECONDS if left is None else min(_RUN_SECONDS, left)
        try:
            answer = await self._bus.request(names.SUBJECT_RECONCILE, seconds=seconds)
        except (nats.errors.Error, TimeoutError) as problem:
            raise _unavailable("Billing does not answer.") from problem
        if not answer:
            raise _unavailable("Billing could not compare everything now; its log says why.")
        return messages.RunReconciliationResponse(reconciliation=Reconciliation.FromString(answer))


def _unavailable(message: str) -> UplionError:
    return UplionError(Reason.UNAVAILABLE, message, retry_after_seconds=_RETRY_SECONDS)
