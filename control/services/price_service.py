"""PriceService: creates and lists versions of prices, which never change."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from uplion.control.v1 import price_pb2, price_service_pb2_grpc
from uplion.control.v1.price_pb2 import Price
from uplion.control.v1.usage_pb2 import Rates

from control.invalidation import Invalidations
from control.requests import fields, paging
from control.stores.prices import PriceStore
from ledger import currencies
from ledger.prices import PER_COMPUTE_SECOND, PER_REQUEST, RATES
from ledger.usage_columns import TOKEN_CLASSES

if TYPE_CHECKING:
    import asyncpg

    from control.requests.caller import Context

_MODEL_CHARACTERS = 256
# What was billed is never priced anew, so a price does not begin in the past; clocks may differ by this much.
_PAST = timedelta(minutes=5)
_REQUIRED = tuple(each.rate for each in TOKEN_CLASSES if each.part_of is None)
_FREE_BY_DEFAULT = (PER_REQUEST, PER_COMPUTE_SECOND)


class PriceService(price_service_pb2_grpc.PriceServiceServicer):
    """Prices in Postgres. Billing reads a new one with its next batch; authz is notified at once."""

    def __init__(self, prices: PriceStore, invalidations: Invalidations) -> None:
        self._prices = prices
        self._invalidations = invalidations

    async def CreatePrice(
        self, request: price_pb2.CreatePriceRequest, context: "Context"
    ) -> price_pb2.CreatePriceResponse:
        if problem := currencies.problem(request.currency):
            raise fields.invalid("currency", problem)
        row = await self._prices.create(
            fields.text("model", request.model, least=1, most=_MODEL_CHARACTERS),
            request.currency,
            {name: _rate(request.rates, name) for name in RATES},
            _effective_from(request),
            fields.request_id(request.request_id),
        )
        await self._invalidations.prices()
        return price_pb2.CreatePriceResponse(price=_price(row))

    async def ListPrices(
        self, request: price_pb2.ListPricesRequest, context: "Context"
    ) -> price_pb2.ListPricesResponse:
        size = paging.page_size(request.page_size)
        before = paging.read_number(request.page_token)
        model = fields.text("model", request.model, most=_MODEL_CHARACTERS) or None
        rows = await self._prices.page(model, request.current, size + 1, before)
        response = price_pb2.ListPricesResponse(prices=[_price(row) for row in rows[:size]])
        if len(rows) > size:
            response.next_page_token = paging.encode_token(str(rows[size - 1]["version"]))
        return response


def _rate(rates: Rates, name: str) -> Decimal | None:
    text: str = getattr(rates, name)
    if not text:
        if name in _REQUIRED:
            raise fields.invalid(f"rates.{name}", 'must be set; "0" is free')
        return Decimal(0) if name in _FREE_BY_DEFAULT else None
    return fields.amount(f"rates.{name}", text)


def _effective_from(request: price_pb2.CreatePriceRequest) -> datetime | None:
    if not request.HasField("effective_from"):
        return None
    moment = fields.moment("effective_from", request.effective_from)
    if moment < datetime.now(UTC) - _PAST:
        raise fields.invalid("effective_from", "is in the past, and what was billed is never priced anew")
    return moment


def _price(row: "asyncpg.Record") -> Price:
    rates = Rates()
    for name in RATES:
        if row[name] is not None:
            setattr(rates, name, fields.decimal_text(row[name]))
    return Price(
        version=row["version"],
        model=row["model"],
        currency=row["currency"],
        rates=rates,
        effective_from=row["effective_from"],
        create_time=row["create_time"],
        in_force=row["in_force"],
    )
