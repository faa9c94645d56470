"""AlertService: lists the alerts that billing raised."""

from typing import TYPE_CHECKING

from uplion.control.v1 import alert_pb2, alert_service_pb2_grpc
from uplion.control.v1.alert_pb2 import Alert, AlertKind, AlertLevel

from control.requests import fields, paging
from control.requests.caller import Caller
from control.stores.alerts import AlertStore

if TYPE_CHECKING:
    from control.requests.caller import Context


class AlertService(alert_service_pb2_grpc.AlertServiceServicer):
    """Reads what billing wrote."""

    def __init__(self, alerts: AlertStore) -> None:
        self._alerts = alerts

    async def ListAlerts(
        self, request: alert_pb2.ListAlertsRequest, context: "Context"
    ) -> alert_pb2.ListAlertsResponse:
        account = fields.account(request.account, Caller.current())
        size = paging.page_size(request.page_size)
        rows = await self._alerts.page(account, size + 1, paging.read_number(request.page_token))
        response = alert_pb2.ListAlertsResponse()
        for row in rows[:size]:
            alert = Alert(
                kind=AlertKind.Value(f"ALERT_KIND_{row['kind'].upper()}"),
                level=AlertLevel.Value(f"ALERT_LEVEL_{row['level'].upper()}"),
                **{name: row[name] for name in ("id", "account", "subject", "period", "message", "create_time")},
            )
            response.alerts.append(alert)
        if len(rows) > size:
            response.next_page_token = paging.encode_token(str(rows[size - 1]["id"]))
        return response
