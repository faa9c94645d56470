"""ReconciliationService: the last run, a new one by the leading billing process, and a clear error without one."""

from typing import Any

import pytest
from google.protobuf import json_format
from uplion.billing.v1.reconciliation_pb2 import Difference, Reconciliation
from uplion.control.v1.reconciliation_service_pb2 import GetReconciliationRequest, RunReconciliationRequest
from uplion.control.v1.reconciliation_service_pb2_grpc import ReconciliationServiceStub

from common import names
from common.errors import Reason

FOUND = Reconciliation(whole=True, stream_events=7, differences=[Difference(check="lost", subject="r.1")])


@pytest.fixture
def stub(control):
    return ReconciliationServiceStub(control.channel)


async def test_the_last_run_is_shown(control, stub, database):
    refused = await control.refusal(stub.GetReconciliation, GetReconciliationRequest())
    assert refused.reason is Reason.NOT_FOUND
    none: list[Any] = []
    for differences in (none, FOUND.differences):
        report = Reconciliation(whole=True, stream_events=7, differences=differences)
        await database.execute(
            "INSERT INTO reconciliations (run_time, stream_sequence, differences, report) VALUES (now(), 7, 0, $1)",
            json_format.MessageToJson(report),
        )
    answer = await control.call(stub.GetReconciliation, GetReconciliationRequest())
    assert answer.reconciliation == FOUND


async def test_billing_is_asked_for_a_run(control, stub, bus):
    refused = await control.refusal(stub.RunReconciliation, RunReconciliationRequest())
    assert (refused.reason, refused.message) == (Reason.UNAVAILABLE, "Billing does not answer.")
    answers = [b"", FOUND.SerializeToString()]

    async def bill(message):
        await message.respond(answers.pop(0))

    subscription = await bus.subscribe(names.SUBJECT_RECONCILE, cb=bill)
    await bus.flush()
    refused = await control.refusal(stub.RunReconciliation, RunReconciliationRequest())
    assert refused.reason is Reason.UNAVAILABLE
    answer = await control.call(stub.RunReconciliation, RunReconciliationRequest())
    assert answer.reconciliation == FOUND
    await subscription.unsubscribe()
