"""A ticket in the hands of a worker that makes no offer is given to another one; one that waits its turn is not."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from uplion.dispatch.v1 import run_pb2

from common.names import STREAM_TASKS
from tests.integration.router.dispatch.scripts import chat, done, one
from tests.kit.until import until

_LONG_BEFORE_THE_QUEUE_SECONDS = 10.0  # it delivers again after 30; two seconds are what is wanted
_REQUESTS = 20


async def _swallowed(world: Any, count: int) -> tuple[Any, list[Any]]:
    """So many requests, whose tickets are all with a worker that offers nothing."""
    dead = await world.start_worker(swallows=True)
    asking = [
        asyncio.create_task(
            world.client.post("CreateChatCompletion", chat(world.model), request_id=f"{world.model}-{number}")
        )
        for number in range(count)
    ]
    await until(lambda: len(dead.offered) == count)
    return dead, asking


async def test_tickets_that_a_killed_worker_took_run_elsewhere_as_the_same_attempt(start_world: Any) -> None:
    async with start_world(worker=False) as world:
        dead, asking = await _swallowed(world, _REQUESTS)
        worker = await world.start_worker()
        began = time.monotonic()
        await dead.kill()
        answers = await asyncio.gather(*asking)
        took = time.monotonic() - began
        assert {status for status, *_ in answers} == {200}
        assert took < _LONG_BEFORE_THE_QUEUE_SECONDS
        assert sorted(run.ticket.request_id for run in worker.runs) == sorted(
            f"{world.model}-{number}" for number in range(_REQUESTS)
        )
        assert {run.ticket.attempt for run in worker.runs} == {1}
        info = await world.bus.js.stream_info(STREAM_TASKS, subjects_filter=world.tickets)
        assert not info.state.subjects, "what was lost was deleted"


async def test_a_stopped_worker_that_asks_for_more_does_not_keep_them(start_world: Any) -> None:
    """Its credit stands: some of the second copies go to it too. Late offers of it are refused."""
    async with start_world(worker=False) as world:
        stopped, asking = await _swallowed(world, _REQUESTS)
        worker = await world.start_worker()
        answers = await asyncio.gather(*asking)
        assert {status for status, *_ in answers} == {200}
        assert len(worker.runs) == _REQUESTS
        for ticket in stopped.offered[:_REQUESTS]:
            await stopped.offer(ticket)
        await until(lambda: len(stopped.refused) == _REQUESTS)
        assert stopped.runs == []


async def test_a_ticket_that_waits_for_a_free_slot_keeps_its_place(start_world: Any) -> None:
    async def script(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        yield one("Hello", 1, finish=True)
        yield done(1)

    async with start_world(worker=False, model_loading_seconds=60.0) as world:
        asking = asyncio.create_task(world.client.post("CreateChatCompletion", chat(world.model)))
        await world.until_queued()
        worker = await world.start_worker(script=script, slots=0)
        published = await _sequence(world)
        await asyncio.sleep(2.0)  # as long as a lost one would have been looked for
        assert await _sequence(world) == published
        worker.slots = 1
        status, *_ = await asking
        assert status == 200
        assert len(worker.offered) == 1


async def _sequence(world: Any) -> int:
    state = (await world.bus.js.stream_info(STREAM_TASKS, subjects_filter=world.tickets)).state
    (subject,) = state.subjects
    message = await world.bus.js.get_last_msg(STREAM_TASKS, subject)
    return int(message.seq)
