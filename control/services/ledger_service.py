"""LedgerService: exports the ledger with its proofs, for verification offline."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from google.api.httpbody_pb2 import HttpBody
from uplion.control.v1 import ledger_pb2, ledger_service_pb2_grpc
from uplion.control.v1.ledger_pb2 import LedgerKey

from control.requests import fields
from control.requests.caller import Caller
from control.stores.ledger_export import LedgerExport, write

if TYPE_CHECKING:
    from control.requests.caller import Context


class LedgerService(ledger_service_pb2_grpc.LedgerServiceServicer):
    """Reads what billing chained and signed."""

    def __init__(self, export: LedgerExport) -> None:
        self._export = export
        self._exports = asyncio.Semaphore(1)  # each reads the whole ledger

    async def ListLedgerKeys(
        self, request: ledger_pb2.ListLedgerKeysRequest, context: "Context"
    ) -> ledger_pb2.ListLedgerKeysResponse:
        return ledger_pb2.ListLedgerKeysResponse(
            keys=[
                LedgerKey(id=row["key_id"], public_key=row["public_key"], create_time=row["create_time"])
                for row in await self._export.keys()
            ]
        )

    async def ExportLedger(
        self, request: ledger_pb2.ExportLedgerRequest, context: "Context"
    ) -> AsyncIterator[HttpBody]:
        account = fields.account(request.account, Caller.current())
        async with self._exports:
            async for lines in self._export.lines(account):
                yield HttpBody(content_type="application/jsonl", data=write(lines))
