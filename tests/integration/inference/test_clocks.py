"""A worker whose clock is wrong: it runs what it is given, and the ledger is dated rightly."""

import asyncio
import time
from pathlib import Path

import pytest
from uplion.billing.v1.usage_event_pb2 import AttemptStatus

from billing.entry import Arrival, decode
from common import names
from messaging.pull import Pull
from tests.integration.inference.test_metering import process
from tests.kit.fake_router import fake_router, manifest_file
from tests.kit.until import until

_SHIFT = """
import time
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {seconds}
time.time_ns = lambda: _time_ns() + {seconds} * 10**9
"""


def shifted(folder: Path, seconds: int) -> dict[str, str]:
    """The environment of a Python process whose clock is wrong by so many seconds."""
    (folder / "sitecustomize.py").write_text(_SHIFT.format(seconds=seconds))
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("seconds", [3600, -3600, 40 * 86_400])
async def test_a_worker_whose_clock_is_wrong_answers_and_is_billed_at_the_right_time(nats_url, tmp_path, seconds):
    model = f"clock{seconds}".replace("-", "minus")
    manifest = manifest_file(tmp_path, model)
    environment = shifted(tmp_path, seconds)
    began = time.time()
    async with fake_router(nats_url, model) as router, process(manifest, nats_url, tmp_path / "spool", environment):
        await until(router.worker)
        request = router.chat(max_output_tokens=2)
        assert (await router.run(request))[-1].usage.output_tokens == 2
        usage = await router.usage(request.ticket.request_id)
        assert usage.status == AttemptStatus.ATTEMPT_STATUS_COMPLETED
        assert abs(usage.end_time.seconds - began - seconds) < 1000, "the process has another clock"
        entry = await _entry(router, request.ticket.request_id)
        assert began - 1 < entry.end_microseconds / 1e6 < time.time() + 1
        assert 0 <= entry.first_token_seconds < 120
        assert 0 <= entry.duration_seconds < 120


async def _entry(router, request_id):
    """The event as billing reads it."""
    subject = names.usage_subject(router.model)
    subscription = await router.bus.js.pull_subscribe(subject, stream=names.STREAM_USAGE)
    consumer = (await subscription.consumer_info()).name
    async with Pull(router.bus, names.STREAM_USAGE, consumer) as pull, asyncio.timeout(60):
        await pull.want(10)
        async for message in pull:
            entry = decode(message.data, Arrival.of(message))
            if entry.request_id == request_id:
                return entry
    raise AssertionError("no event")
