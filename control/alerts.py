"""AlertService: what billing noticed about money."""

from typing import TYPE_CHECKING, Any

import grpc.aio
from uplion.control.v1 import alert_pb2, alert_service_pb2_grpc
from uplion.control.v1.alert_pb2 import Alert, AlertKind, AlertLevel

from control import requests
from control.books import Books

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class AlertService(alert_service_pb2_grpc.AlertServiceServicer):
    """Reads what billing wrote."""

    def __init__(self, books: Books) -> None:
        self._books = books

    async def ListAlerts(  # noqa: N802  # the contract's name
        self, request: alert_pb2.ListAlertsRequest, context: "Context"
    ) -> alert_pb2.ListAlertsResponse:
        account = requests.account(request.account, requests.caller(context))
        size = requests.page_size(request.page_size)
        rows = await self._books.list_alerts(account, size + 1, requests.read_number(request.page_token))
        response = alert_pb2.ListAlertsResponse()
        for row in rows[:size]:
            alert = Alert(
                kind=AlertKind.Value(f"ALERT_KIND_{row['kind'].upper()}"),
                level=AlertLevel.Value(f"ALERT_LEVEL_{row['level'].upper()}"),
                **{name: row[name] for name in ("id", "account", "subject", "period", "message", "create_time")},
            )
            response.alerts.append(alert)
        if len(rows) > size:
            response.next_page_token = requests.encode_token(str(rows[size - 1]["id"]))
        return response
