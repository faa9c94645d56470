"""A call that is sent again with its proof, within the proof's minute, is neither run nor billed a second time."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.api.httpbody_pb2 import HttpBody
from uplion.billing.v1 import usage_event_pb2 as billing
from uplion.dispatch.v1 import run_pb2

from common.names import SUBJECT_RELEASE
from tests.integration.router.dispatch.scripts import chat, code
from tests.kit.proof import proven
from tests.kit.scripted_worker import hello
from tests.kit.until import until

METHOD = "/uplion.openai.v1.OpenAIService/CreateChatCompletion"


async def test_a_call_is_run_once_and_the_first_one_is_billed(start_world: Any) -> None:
    go_on = asyncio.Event()

    async def slow(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        await go_on.wait()
        async for event in hello(request, context):
            yield event

    async with start_world(worker=False) as world:
        worker = await world.start_worker(script=slow)
        released: list[bytes] = []

        async def on_release(message: Any) -> None:
            released.append(message.data)

        await world.bus.subscribe(SUBJECT_RELEASE, cb=on_release)
        await world.bus.flush()
        metadata = proven(
            METHOD, world.client.metadata(request_id=world.model, reservation=world.model, holds_slot=True)
        )
        call = world.client.channel.bare.unary_stream(METHOD)

        async def post(body: bytes) -> bytes:
            message = HttpBody(content_type="application/json", data=body).SerializeToString()
            answer = call(message, metadata=metadata, timeout=60)
            return b"".join([HttpBody.FromString(each).data async for each in answer])

        first = asyncio.create_task(post(chat(world.model)))
        await until(lambda: worker.runs)
        bodies = (chat(world.model), chat(world.model, stream=True, max_tokens=60))
        for body in bodies:  # while it runs
            assert code(await post(body)) == "already_exists"
        go_on.set()
        assert b"chat.completion" in await first
        for body in bodies:  # and afterwards
            assert code(await post(body)) == "already_exists"
        await world.usage_published()
        assert len(worker.runs) == 1
        assert [(event.request_id, event.status) for event in world.usage] == [
            (world.model, billing.ATTEMPT_STATUS_COMPLETED)
        ]
        await until(lambda: released)
        assert released == [f"acme {world.model}".encode()]
