"""The worker against a real NATS, with the synthetic engine."""

import asyncio

import grpc
import pytest

from uplion.billing.v1.usage_event_pb2 import AttemptStatus
from uplion.inference.v1.sampling_pb2 import FinishReason


async def test_runs_a_chat_and_meters_it_once(start_worker):
    router = (await start_worker(synthetic={"outputTokens": 5})).router
    request = router.chat("Hello there")
    events = await router.run(request)
    assert len(events) == 1, "one engine step is one event"
    assert events[0].input_tokens == events[0].usage.input_tokens == 3
    assert events[0].usage.output_tokens == 5 == len(events[0].deltas[0].token_ids)
    assert events[0].deltas[0].text == " These words come from the"
    assert events[0].deltas[0].finish_reason == FinishReason.FINISH_REASON_STOP
    usage = await router.usage(request.ticket.request_id)
    assert usage.status == AttemptStatus.ATTEMPT_STATUS_COMPLETED
    assert usage.last
    assert (usage.account, usage.key, usage.reservation) == ("acme", "k1", "r1")
    assert (usage.model, usage.model_served, usage.provider) == (router.model, router.model, "synthetic")
    assert usage.usage == events[0].usage
    assert usage.operation == "chat"
    assert usage.ticket_time == request.ticket.publish_time
    await router.settled()
