"""Prices over the real admin API: versions that are only ever added."""

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from uplion.control.v1.price_pb2 import CreatePriceRequest, ListPricesRequest
from uplion.control.v1.price_service_pb2_grpc import PriceServiceStub
from uplion.control.v1.usage_pb2 import Rates

from common import names
from common.errors import Reason

RATES = Rates(input_per_million_tokens="0.15", output_per_million_tokens="0.60")


@pytest.fixture
def prices(control):
    class Prices:
        stub = PriceServiceStub(control.channel)

        def request(self, **fields):
            return CreatePriceRequest(**{"model": "large", "currency": "USD", "rates": RATES, **fields})

        async def create(self, **fields):
            return (await control.call(self.stub.CreatePrice, self.request(**fields))).price

        async def refusal(self, **fields):
            return await control.refusal(self.stub.CreatePrice, self.request(**fields))

        async def list(self, **fields):
            return await control.call(self.stub.ListPrices, ListPricesRequest(**fields))

    return Prices()


def moment(when):
    stamp = Timestamp()
    stamp.FromDatetime(when)
    return stamp


async def test_a_price_holds_from_now_on_and_every_digit_stays(prices, bus):
    heard = await bus.subscribe(names.SUBJECT_INVALIDATE)
    await bus.flush()
    rates = Rates(
        input_per_million_tokens="123456789012.000000000001",
        cached_per_million_tokens="0",
        output_per_million_tokens="0.60",
        per_request="0.0010",
    )
    made = await prices.create(rates=rates)
    assert made.in_force
    assert (made.model, made.currency, made.rates.input_per_million_tokens) == (
        "large",
        "USD",
        "123456789012.000000000001",
    )
    assert (made.rates.cached_per_million_tokens, made.rates.output_per_million_tokens) == ("0", "0.6")
    assert (made.rates.per_request, made.rates.per_gpu_second) == ("0.001", "0")
    assert not made.rates.HasField("reasoning_per_million_tokens")
    assert abs(made.effective_from.ToDatetime(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=1)
    assert (await heard.next_msg(timeout=10)).data == b"prices:"
    assert list((await prices.list(model="large")).prices) == [made]


async def test_a_change_is_a_new_version_and_a_later_one_waits_for_its_time(prices):
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    first = await prices.create()
    second = await prices.create()
    later = await prices.create(effective_from=moment(tomorrow), currency="EUR")
    other = await prices.create(model="small")
    found = {price.version: price.in_force for price in (await prices.list()).prices}
    assert found == {other.version: True, later.version: False, second.version: True, first.version: False}
    assert [price.version for price in (await prices.list(current=True, model="large")).prices] == [
        later.version,
        second.version,
    ]
    page = await prices.list(page_size=3)
    assert [p.version for p in (await prices.list(page_size=3, page_token=page.next_page_token)).prices] == [
        first.version
    ]


async def test_a_retried_request_makes_one_version(prices):
    first = await prices.create(request_id="r1")
    assert await prices.create(request_id="r1", currency="EUR") == first
    assert len((await prices.list()).prices) == 1


async def test_versions_cannot_be_changed_even_by_hand(prices, database):
    await prices.create()
    for statement in ("UPDATE prices SET per_request = 1", "DELETE FROM prices"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await database.execute(statement)


async def test_every_wrong_field_is_named(prices, control):
    past = moment(datetime.now(UTC) - timedelta(hours=1))
    cases = {
        "currency": {"currency": "usd"},
        "model": {"model": ""},
        "effective_from": {"effective_from": past},
        "rates.input_per_million_tokens": {"rates": Rates(output_per_million_tokens="1")},
        "rates.output_per_million_tokens": {
            "rates": Rates(input_per_million_tokens="1", output_per_million_tokens="-1")
        },
    }
    for text in ("1e3", "NaN", "0.0000000000001", "1,5", "٣", "1" * 13):
        assert (await prices.refusal(rates=Rates(input_per_million_tokens=text))).param.startswith("rates.input")
    for param, fields in cases.items():
        refused = await prices.refusal(**fields)
        assert (refused.reason, refused.param) == (Reason.INVALID_REQUEST, param)
    for token in ("x", "-1", "MTIzYQ"):
        assert (await control.refusal(prices.stub.ListPrices, ListPricesRequest(page_token=token))).param
