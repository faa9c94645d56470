"""What a client of these tests posts and reads, and what a scripted worker answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from uplion.dispatch.v1 import run_pb2
from uplion.inference.v1 import sampling_pb2

STOP = sampling_pb2.FINISH_REASON_STOP


def chat(model: str, **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def code(data: bytes) -> str:
    return str(json.loads(data)["error"]["code"])


def text(data: bytes) -> str:
    frames = [json.loads(frame[6:]) for frame in data.decode().split("\n\n") if frame.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for frame in frames for choice in frame.get("choices", []))


def one(said: str, token: int, *, finish: bool = False) -> run_pb2.RunEvent:
    delta = run_pb2.Delta(index=0, parts=[run_pb2.Part(text=said)], token_ids=[token])
    if finish:
        delta.finish_reason = STOP
    return run_pb2.RunEvent(deltas=[delta], input_tokens=7)


def done(output_tokens: int) -> run_pb2.RunEvent:
    return run_pb2.RunEvent(usage=sampling_pb2.TokenUsage(input_tokens=7, output_tokens=output_tokens))


async def forever(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
    yield one("Hello", 1)
    await asyncio.sleep(3600)


async def silent(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
    await asyncio.sleep(3600)
    yield done(0)


async def vanish_at_once(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
    """As a killed process looks from the router: the stream breaks without a status of ours."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    yield done(0)


def dies_after_two_tokens(then: str = " again", *, ids: bool = True) -> Any:
    async def script(request: run_pb2.RunRequest, context: Any) -> AsyncIterator[run_pb2.RunEvent]:
        if request.ticket.attempt == 1:
            yield one("Hello", 11)
            event = one(" there", 12)
            if not ids:
                del event.deltas[0].token_ids[:]
            yield event
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        yield one(then, 13, finish=True)
        yield done(1)

    return script
