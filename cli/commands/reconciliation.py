"""`uplion reconcile`: compares stream, ledger, rollups, balances and counters."""

from uplion.control.v1.reconciliation_service_pb2 import GetReconciliationRequest, RunReconciliationRequest
from uplion.control.v1.reconciliation_service_pb2_grpc import ReconciliationServiceStub

from cli.client.connection import Admin, shown_time
from cli.output import JsonObject

_RUN_SECONDS = 600.0
_COUNTS = ("stream_events", "stream_sequence", "pending_events", "sums", "counters")
COLUMNS = ("check", "subject", "expected", "found")


def report(api: Admin, *, last: bool) -> JsonObject:
    """The report of a new run, or of the last one."""
    service = api.stub(ReconciliationServiceStub)
    if last:
        found = api.call(service.GetReconciliation, GetReconciliationRequest()).reconciliation
    else:
        found = api.call(service.RunReconciliation, RunReconciliationRequest(), seconds=_RUN_SECONDS).reconciliation
    return {
        "clean": not found.differences,
        "run_time": shown_time(found, "run_time"),
        "seconds": round(found.duration.ToMilliseconds() / 1000, 3),
        "whole": found.whole,
        **{name: getattr(found, name) for name in _COUNTS},
        "differences": [{name: getattr(each, name) for name in COLUMNS} for each in found.differences],
    }


def sentence(found: JsonObject) -> str:
    """The result in one line."""
    looked = f"{found['stream_events']} events, {found['sums']} sums and {found['counters']} counters compared"
    waiting = f", {found['pending_events']} events on their way" if found["pending_events"] else ""
    count = len(found["differences"])
    verdict = "everything agrees" if found["clean"] else f"{count} difference{'s' if count > 1 else ''}"
    return f"{verdict}: {looked} in {found['seconds']} s{waiting}"
