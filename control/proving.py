"""LedgerService: the ledger for those who do not take our word for it."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc.aio
from google.api.httpbody_pb2 import HttpBody
from uplion.control.v1 import ledger_pb2, ledger_service_pb2_grpc
from uplion.control.v1.ledger_pb2 import LedgerKey

from control import requests
from control.proofs import Proofs, write

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class LedgerService(ledger_service_pb2_grpc.LedgerServiceServicer):
    """Reads what billing chained and signed."""

    def __init__(self, proofs: Proofs) -> None:
        self._proofs = proofs
        self._exports = asyncio.Semaphore(1)  # each reads the whole ledger

    async def ListLedgerKeys(  # noqa: N802  # the contract's name
        self, request: ledger_pb2.ListLedgerKeysRequest, context: "Context"
    ) -> ledger_pb2.ListLedgerKeysResponse:
        return ledger_pb2.ListLedgerKeysResponse(
            keys=[
                LedgerKey(id=row["key_id"], public_key=row["public_key"], create_time=row["create_time"])
                for row in await self._proofs.keys()
            ]
        )

    async def ExportLedger(  # noqa: N802  # the contract's name
        self, request: ledger_pb2.ExportLedgerRequest, context: "Context"
    ) -> AsyncIterator[HttpBody]:
        account = requests.account(request.account, requests.caller(context))
        async with self._exports:
            async for lines in self._proofs.export(account):
                yield HttpBody(content_type="application/jsonl", data=write(lines))
