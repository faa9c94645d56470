"""A router tells the worker what of each run the client was given, and tells it again when it is asked."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from uplion.dispatch.v1 import run_pb2, ticket_pb2
from uplion.dispatch.v1.ticket_pb2 import Receipt

from common.errors import Reason, UplionError
from rpc.interceptors import abort
from tests.integration.router.dispatch.scripts import chat, done, forever, one, vanish_at_once
from tests.kit.scripted_worker import hello
from tests.kit.until import until

ENDED, FAILED, ACCOUNTED = (
    ticket_pb2.RECEIPT_STATE_ENDED,
    ticket_pb2.RECEIPT_STATE_FAILED,
    ticket_pb2.RECEIPT_STATE_ACCOUNTED,
)


async def final(worker: Any) -> Receipt:
    """The receipt of the one attempt that has ended."""

    def last() -> list[Receipt]:
        return [receipt for receipt in worker.receipts if receipt.state]

    await until(last)
    (receipt,) = last()
    return receipt


@pytest.mark.parametrize("stream", [True, False])
async def test_a_delivered_answer_has_a_receipt(start_world: Any, stream: bool) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker()
        await world.client.post("CreateChatCompletion", chat(world.model, stream=stream), request_id=world.model)
        receipt = await final(worker)
        assert (receipt.request_id, receipt.attempt, receipt.state) == (world.model, 1, ENDED)
        assert receipt.HasField("output_tokens") == stream
        assert receipt.output_tokens == (2 if stream else 0)
        assert worker.runs[0].receipts


async def test_a_stream_reports_how_far_it_came_and_its_cut_end_what_the_client_had(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=forever)
        call = world.client.open("CreateChatCompletion", chat(world.model, stream=True))
        await call.read()
        await until(lambda: worker.receipts)
        assert [(receipt.state, receipt.output_tokens) for receipt in worker.receipts] == [(0, 1)]
        call.cancel()
        receipt = await final(worker)
        assert (receipt.state, receipt.output_tokens) == (ENDED, 1)


async def test_a_client_that_leaves_a_whole_answer_pays_for_what_was_made(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=forever)
        body = chat(world.model, max_tokens=1000)
        call = world.client.open("CreateChatCompletion", body, max_output_tokens=None)
        reading = asyncio.create_task(call.read())
        await until(lambda: worker.runs)
        await until(lambda: worker.cancelled or call.cancel())
        await asyncio.wait([reading])
        receipt = await final(worker)
        assert receipt.state in (ENDED, ACCOUNTED), "as the attempt was running or only offered"
        assert not receipt.HasField("output_tokens")


async def test_an_attempt_that_the_router_accounts_for_is_none_of_its_workers(start_world: Any) -> None:
    async with start_world(worker=False, attempts=1) as world:
        worker = await world.start_worker(script=vanish_at_once)
        await world.client.post("CreateChatCompletion", chat(world.model))
        assert (await final(worker)).state == ACCOUNTED


async def test_an_answer_that_cannot_be_written_is_a_failure(start_world: Any, monkeypatch: Any) -> None:
    def broken(*_: object) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr("router.surfaces.openai.write.whole_answer", broken)
    async with start_world(worker=False) as world:
        worker = await world.start_worker()
        status, *_ = await world.client.post("CreateChatCompletion", chat(world.model))
        assert (status, (await final(worker)).state) == (500, FAILED)


async def test_a_refused_attempt_has_a_receipt_too(start_world: Any) -> None:
    async def refuses(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        await abort(context, UplionError(Reason.INVALID_REQUEST, "No."))
        yield done(0)

    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=refuses)
        await world.client.post("CreateChatCompletion", chat(world.model))
        assert (await final(worker)).state == FAILED


async def test_a_receipt_is_sent_again_but_not_before_the_end(start_world: Any) -> None:
    async def script(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        yield one("Hello", 1)
        await go_on.wait()
        yield one(" there", 2, finish=True)
        yield done(2)

    async with start_world(worker=False) as world:
        go_on = asyncio.Event()
        worker = await world.start_worker(script=script)
        call = world.client.open("CreateChatCompletion", chat(world.model, stream=True))
        await call.read()
        await until(lambda: worker.receipts)
        await worker.offer(worker.offered[0], ended=True)
        go_on.set()
        while await call.read() is not grpc.aio.EOF:
            pass
        await final(worker)
        await worker.offer(worker.offered[0], ended=True)
        await until(lambda: len([receipt for receipt in worker.receipts if receipt.state]) == 2)
        assert len(worker.runs) == 1
        assert worker.refused == []


async def test_a_worker_of_an_earlier_version_gets_none(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=hello)
        await until(lambda: worker.receipt_subject)
        worker.receipt_subject = ""
        await world.client.post("CreateChatCompletion", chat(world.model, stream=True))
        assert not worker.runs[0].receipts
