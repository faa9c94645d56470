"""A worker counts what clients were given: as receipts say, or as follows from a router that is gone."""

import grpc.aio
import pytest
from uplion.billing.v1.usage_event_pb2 import AttemptStatus
from uplion.dispatch.v1 import ticket_pb2
from uplion.dispatch.v1.run_pb2 import RunEvent
from uplion.dispatch.v1.ticket_pb2 import Receipt

from common import names
from tests.kit.until import until

SLOW = {"outputTokens": 10_000, "tokensPerSecond": 100}
COMPLETED, CANCELLED, FAILED = (
    AttemptStatus.ATTEMPT_STATUS_COMPLETED,
    AttemptStatus.ATTEMPT_STATUS_CANCELLED,
    AttemptStatus.ATTEMPT_STATUS_FAILED,
)


class Mortal:
    """A router that can vanish: nobody is subscribed to its subject then."""

    def __init__(self, router):
        self.router = router
        self.subject = router.bus.new_inbox()
        self.offers = []

    async def live(self):
        async def on_offer(message):
            self.offers.append(ticket_pb2.Offer.FromString(message.data))
            await self.router.on_offer(message)

        self.subscription = await self.router.bus.subscribe(self.subject, cb=on_offer)
        return self

    async def die(self):
        await self.subscription.unsubscribe()
        await self.router.bus.flush()

    def chat(self, **sampling):
        request = self.router.chat(**sampling)
        request.ticket.reply_subject = self.subject
        request.receipts = True
        return request

    async def receipt(self, request, state=ticket_pb2.RECEIPT_STATE_UNSPECIFIED, **fields):
        ticket = request.ticket
        receipt = Receipt(request_id=ticket.request_id, attempt=ticket.attempt, state=state, **fields)
        payload = ticket_pb2.Receipts(receipts=[receipt]).SerializeToString()
        await self.router.bus.publish_core(self.offers[0].receipt_subject, payload)
        await self.router.bus.flush()


@pytest.fixture
def start_mortal(start_worker):
    async def start(**spec):
        return await Mortal((await start_worker(**spec)).router).live()

    return start


async def read(call, events=None):
    """Events of a call, up to so many, or all."""
    found: list[RunEvent] = []
    while (events is None or len(found) < events) and (event := await call.read()) is not grpc.aio.EOF:
        found.append(event)
    return found


async def test_a_whole_answer_whose_router_dies_before_its_end_costs_nothing(start_mortal):
    mortal = await start_mortal(synthetic=SLOW)
    request = mortal.chat()
    request.whole = True
    call = await mortal.router.open(request)
    await read(call, 1)
    await mortal.die()
    call.cancel()
    usage = await mortal.router.usage(request.ticket.request_id)
    assert (usage.status, usage.error_reason, usage.last) == (FAILED, "UNAVAILABLE", True)
    assert not usage.HasField("usage")
    assert usage.reservation == "r1"
    await mortal.router.settled()


@pytest.mark.parametrize("form", ["whole", "once", "stream"])
async def test_a_complete_answer_whose_router_dies_before_it_was_delivered_costs_nothing(start_mortal, form):
    mortal = await start_mortal()
    request = mortal.chat(max_output_tokens=3)
    request.whole, request.once = form != "stream", form == "once"
    events = await read(await mortal.router.open(request))
    assert events[-1].usage.output_tokens == 3
    await mortal.die()
    usage = await mortal.router.usage(request.ticket.request_id)
    assert (usage.status, usage.error_reason, usage.last) == (FAILED, "UNAVAILABLE", True)
    assert not usage.HasField("usage")


async def test_a_stream_whose_router_dies_is_counted_as_far_as_its_last_receipt(start_mortal):
    mortal = await start_mortal(synthetic=SLOW)
    request = mortal.chat()
    call = await mortal.router.open(request)
    await read(call, 20)
    await mortal.receipt(request, output_tokens=3)
    await mortal.receipt(request, output_tokens=5)
    await mortal.die()
    call.cancel()
    usage = await mortal.router.usage(request.ticket.request_id)
    assert (usage.status, usage.error_reason, usage.last) == (CANCELLED, "UNAVAILABLE", True)
    assert usage.usage.input_tokens
    assert usage.usage.output_tokens == 5


async def test_nothing_is_published_before_the_receipt_which_is_asked_for(start_mortal):
    mortal = await start_mortal()
    request = mortal.chat(max_output_tokens=3)
    request.whole = True
    await read(await mortal.router.open(request))
    await until(lambda: len([offer for offer in mortal.offers if offer.ended]) >= 2)
    info = await mortal.router.bus.js.stream_info(
        names.STREAM_USAGE, subjects_filter=names.usage_subject(mortal.router.model)
    )
    assert not info.state.subjects
    await mortal.receipt(request, ticket_pb2.RECEIPT_STATE_ENDED)
    usage = await mortal.router.usage(request.ticket.request_id)
    assert (usage.status, usage.usage.output_tokens) == (COMPLETED, 3)
    await mortal.router.settled()


async def test_a_receipt_that_comes_before_the_runs_end_is_kept(start_mortal):
    mortal = await start_mortal(synthetic=SLOW)
    request = mortal.chat()
    call = await mortal.router.open(request)
    await read(call, 20)
    await mortal.receipt(request, ticket_pb2.RECEIPT_STATE_ENDED, output_tokens=2)
    call.cancel()
    usage = await mortal.router.usage(request.ticket.request_id)
    assert (usage.status, usage.usage.output_tokens) == (CANCELLED, 2)
    assert not [offer for offer in mortal.offers if offer.ended]


async def test_an_attempt_that_its_router_accounts_for_is_settled_without_an_event(start_mortal):
    mortal = await start_mortal(synthetic=SLOW)
    request = mortal.chat()
    call = await mortal.router.open(request)
    await read(call, 1)
    await mortal.receipt(request, ticket_pb2.RECEIPT_STATE_ACCOUNTED)
    call.cancel()
    await mortal.router.settled()
    info = await mortal.router.bus.js.stream_info(
        names.STREAM_USAGE, subjects_filter=names.usage_subject(mortal.router.model)
    )
    assert not info.state.subjects
