"""Which tickets a worker takes, and how each is settled."""

import asyncio

import grpc
import pytest
from uplion.billing.v1.usage_event_pb2 import AttemptStatus
from uplion.dispatch.v1.worker_service_pb2_grpc import WorkerServiceStub

from common import names
from tests.kit.fake_router import WAIT_SECONDS
from tests.kit.tcp_proxy import TcpProxy

SLOW = {"outputTokens": 10_000, "tokensPerSecond": 100}


async def status_of(call):
    """The code a call ends with."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    except asyncio.CancelledError:
        return grpc.StatusCode.CANCELLED
    return grpc.StatusCode.OK


async def test_a_cancelled_call_stops_the_engine_and_bills_what_was_made(start_worker):
    router = (await start_worker(synthetic=SLOW)).router
    request = router.chat()
    call = await router.open(request)
    received = 0
    async for event in call:
        received += sum(len(delta.token_ids) for delta in event.deltas)
        if received >= 10:
            break
    call.cancel()
    usage = await router.usage(request.ticket.request_id)
    assert usage.status == AttemptStatus.ATTEMPT_STATUS_CANCELLED
    assert received <= usage.usage.output_tokens < 5_000, "10 000 were asked for, at 100 a second"
    assert usage.error_reason == "CANCELLED"
    await router.settled()
    assert (await router.run(router.chat(max_output_tokens=1)))[-1].usage.output_tokens == 1


async def test_a_lost_connection_is_a_cancelled_call(start_worker):
    router = (await start_worker(synthetic=SLOW)).router
    request = router.chat()
    offer, _ = await router.offer(request.ticket)
    async with TcpProxy(offer.address) as proxy, grpc.aio.insecure_channel(proxy.address) as channel:
        call = WorkerServiceStub(channel).Run(request)
        await call.read()
        proxy.cut()
        usage = await router.usage(request.ticket.request_id)
    assert usage.status == AttemptStatus.ATTEMPT_STATUS_CANCELLED
    await router.settled()


async def test_no_more_requests_than_slots(start_worker):
    router = (await start_worker(maxProcessNum=2, synthetic=SLOW)).router
    first, second = router.chat(), router.chat()
    calls = [await router.open(first), await router.open(second)]
    third = router.chat(max_output_tokens=2)
    deliveries = await router.deliveries()
    opening = asyncio.ensure_future(router.open(third))
    await router.left_alone(deliveries)
    assert not opening.done(), "no slot is free, so there is no offer"
    calls[0].cancel()
    call = await opening
    assert await status_of(call) == grpc.StatusCode.OK
    calls[1].cancel()
    await router.settled()


async def test_a_run_that_was_not_offered_is_refused(start_worker):
    router = (await start_worker()).router
    request = router.chat()
    offer, _ = await router.offer(request.ticket)
    stub = router.stub(offer)
    assert await status_of(stub.Run(router.chat())) == grpc.StatusCode.FAILED_PRECONDITION
    proof = request.ticket.proof
    for shown in (b"", bytes(16), proof[:-1], proof + b"\0"):
        request.ticket.proof = shown
        assert await status_of(stub.Run(request)) == grpc.StatusCode.FAILED_PRECONDITION, "no proof of the ticket"
    request.ticket.proof = proof
    assert await status_of(stub.Run(request)) == grpc.StatusCode.OK
    assert await status_of(stub.Run(request)) == grpc.StatusCode.FAILED_PRECONDITION, "once is enough"
    assert (await router.usage(request.ticket.request_id)).status == AttemptStatus.ATTEMPT_STATUS_COMPLETED


async def test_a_refused_offer_settles_the_ticket_without_an_event(start_worker):
    router = (await start_worker()).router
    request = router.chat()
    offer, message = await router.offer(request.ticket)
    await message.respond(b"")
    await router.settled()
    assert await status_of(router.stub(offer).Run(request)) == grpc.StatusCode.FAILED_PRECONDITION
    info = await router.bus.js.stream_info(names.STREAM_USAGE, subjects_filter=names.usage_subject(router.model))
    assert not info.state.subjects


async def test_a_superseded_attempt_is_not_offered_again(start_worker):
    router = (await start_worker()).router
    second = router.ticket(attempt=2)
    await router.run(router.chat(ticket=second))
    router.offers.clear()
    seen = router.offers[second.request_id] = asyncio.get_running_loop().create_future()
    await router.publish(router.ticket(second.request_id, attempt=1))
    await router.run(router.chat())  # its offer comes after any of the ticket before
    await router.settled()
    assert not seen.done()


async def test_a_ticket_whose_router_is_gone_is_settled_as_cancelled(start_worker):
    router = (await start_worker()).router
    ticket = router.ticket()
    ticket.reply_subject = "nobody.listens.here"
    await router.publish(ticket)
    usage = await router.usage(ticket.request_id)
    assert (usage.status, usage.last) == (AttemptStatus.ATTEMPT_STATUS_CANCELLED, True)
    await router.settled()


@pytest.mark.parametrize("wrong_by_seconds", [3600, -3600, 300, -300, 10**8])
async def test_a_ticket_is_run_whatever_the_clocks_say(start_worker, wrong_by_seconds):
    """Its router's clock, or this worker's, is wrong; what is really late, the router refuses."""
    router = (await start_worker()).router
    request = router.chat(max_output_tokens=2)
    for moment in (request.ticket.publish_time, request.ticket.deadline):
        moment.seconds += wrong_by_seconds
    request.queue_duration.FromSeconds(3)
    assert (await router.run(request))[-1].usage.output_tokens == 2
    usage = await router.usage(request.ticket.request_id)
    assert usage.status == AttemptStatus.ATTEMPT_STATUS_COMPLETED
    assert usage.queue_duration.ToNanoseconds() == 3 * 10**9
    assert 0 < usage.first_token_duration.ToNanoseconds() / 1e9 < 120
    assert 3 < usage.duration.ToNanoseconds() / 1e9 < 120
    await router.settled()


async def test_a_run_ends_at_its_deadline(start_worker):
    router = (await start_worker(synthetic=SLOW)).router
    request = router.chat(ticket=router.ticket(seconds=3.0))
    assert await status_of(await router.open(request)) == grpc.StatusCode.DEADLINE_EXCEEDED
    usage = await router.usage(request.ticket.request_id)
    assert usage.status == AttemptStatus.ATTEMPT_STATUS_TIMED_OUT
    assert usage.usage.output_tokens > 10


async def test_an_unanswered_offer_is_given_to_another(start_worker, monkeypatch):
    monkeypatch.setattr("inference.tickets.intake.OFFER_SECONDS", 2.0)
    router = (await start_worker()).router
    request = router.chat()
    first, _ = await router.offer(request.ticket)
    again = router.offers[request.ticket.request_id] = asyncio.get_running_loop().create_future()
    async with asyncio.timeout(WAIT_SECONDS):
        await again
    assert await status_of(router.stub(first).Run(request)) == grpc.StatusCode.OK
    await router.settled()


async def test_what_is_no_ticket_is_buried(start_worker):
    router = (await start_worker()).router
    await router.bus.publish(names.task_subject(router.model), b"\xff\xff not a ticket")
    subscription = await router.bus.js.subscribe(names.dead_subject(names.STREAM_TASKS), ordered_consumer=True)
    message = await subscription.next_msg(WAIT_SECONDS)
    assert message.data == b"\xff\xff not a ticket"
    await subscription.unsubscribe()
    await router.settled()
