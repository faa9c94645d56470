"""Garbage and nonsense on every subject, bucket and stream, and from an upstream, while good requests run beside it."""

import asyncio
import json
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from common import names
from messaging.bus import Bus, connect_bus
from tests.chaos.crowd import Crowd
from tests.e2e.faults import odd_messages
from tests.kit.platform import REPOSITORY, Platform, Up
from tests.kit.until import until, until_sync

_REMOTE = """apiVersion: model.youxam.com/v1alpha1
kind: AIModel
metadata: {{name: remote}}
spec: {{type: remote, model: odd, maxProcessNum: 3, env: {{UPLION_UPSTREAM_URL: "{url}", UPLION_UPSTREAM_KEY: k}}}}
"""


class _Upstream(BaseHTTPRequestHandler):
    """Answers with the usage that the prompt says, as JSON."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        chunk = {"choices": [{"index": 0, "delta": {"content": "Hello."}, "finish_reason": "stop"}]}
        usage = f'{{"choices": [], "usage": {asked["messages"][0]["content"]}}}'
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write(f"data: {json.dumps(chunk)}\n\ndata: {usage}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Upstream) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def odd_platform(start_platform: Up, upstream: str, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    manifest = tmp_path_factory.mktemp("manifests") / "remote.yaml"
    manifest.write_text(_REMOTE.format(url=upstream))
    return start_platform("-f", str(REPOSITORY / "tests/e2e/synthetic.yaml"), "-f", str(manifest))


@contextmanager
def _unharmed(platform: Platform) -> Iterator[Crowd]:
    """Clients that ask all the while, of whom each is served; and no process, service or task is started again."""
    crowd = Crowd(platform.facts["base_url"], platform.facts["api_key"], seed=1)
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(crowd.run(4, stop)))
    before = _starts(platform)
    thread.start()
    try:
        until_sync(lambda: len(crowd.told) > 4)
        yield crowd
        served = len(crowd.told)
        until_sync(lambda: len(crowd.told) > served + 20)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
    assert [told for told in crowd.told if told.fate != "ok"] == []
    assert _starts(platform) == before
    assert _restarts(platform) == []
    until_sync(platform.is_healthy)


def _run(platform: Platform) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((platform.state / "run.json").read_text())
    return found


def _starts(platform: Platform) -> dict[str, tuple[int, int]]:
    return {part["name"]: (part["pid"], part["restarts"]) for part in _run(platform)["parts"]}


def _restarts(platform: Platform) -> list[str]:
    """The lines of /metrics that say that a task or a service was started again."""
    found = []
    for part in _run(platform)["parts"]:
        if address := part["metrics_address"]:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as page:
                lines = page.read().decode().splitlines()
            found += [line for line in lines if "_restarts_total{" in line]
    return found


async def _publish(bus: Bus, subject: str, data: bytes) -> int:
    """Into a stream; the sequence it got."""
    return (await bus.js.publish(subject, data, timeout=30)).seq


async def _dead(bus: Bus, stream: str) -> dict[int, tuple[str, bytes]]:
    """Why each message of the stream is dead, and its payload, by its sequence there."""
    found: dict[int, tuple[str, bytes]] = {}
    state = (await bus.js.stream_info(names.STREAM_DEAD)).state
    for sequence in range(state.first_seq, state.last_seq + 1):
        message = await bus.js.get_msg(names.STREAM_DEAD, sequence)
        headers = message.headers or {}
        if message.subject == names.dead_subject(stream):
            number = int(headers[names.HEADER_DEAD_SEQUENCE])
            found[number] = (headers[names.HEADER_DEAD_REASON], message.data or b"")
    return found


async def _settled(bus: Bus) -> bool:
    found = [
        (info.num_pending or 0) + (info.num_ack_pending or 0)
        for info in await bus.js.consumers_info(names.STREAM_USAGE)
    ]
    return sum(found) == 0


def test_usage_events_that_cannot_be_billed_are_dead_with_their_reason_and_all_others_are_billed(
    odd_platform: Platform,
) -> None:
    async def feed() -> None:
        async with connect_bus(odd_platform.facts["nats_url"], "test") as bus:
            bad = {await _publish(bus, "usage.odd", data): name for name, data in odd_messages.usage_events()}
            good = [odd_messages.usage_event() for _ in range(20)] + odd_messages.events_of_odd_tickets()
            for event in good:
                await _publish(bus, "usage.synthetic", event.SerializeToString())
            await until(lambda: _settled(bus))
            dead = await _dead(bus, names.STREAM_USAGE)
            assert {name for sequence, name in bad.items() if sequence not in dead} == set()
            assert [reason for reason, _ in dead.values() if not reason] == []
            database = await asyncpg.connect(odd_platform.facts["postgres_url"], timeout=60)
            try:
                ids = [event.request_id for event in good]
                query = "SELECT count(*) FROM usage_events WHERE request_id = ANY($1::text[])"
                assert await database.fetchval(query, ids) == len(good)
            finally:
                await database.close()

    with _unharmed(odd_platform) as crowd:
        asyncio.run(feed())
        until_sync(lambda: len(crowd.told) > 10)
    # What is dead does not hinder the comparison of what is not.
    found = _reconciled(odd_platform)
    assert {each["check"] for each in found} <= {"dead"}


def _reconciled(platform: Platform) -> list[dict[str, Any]]:
    """The differences that a run over everything finds."""
    request = urllib.request.Request(
        f"{platform.facts['admin_url']}/reconciliation:run",
        data=b"{}",
        method="POST",
        headers={"authorization": f"Bearer {platform.facts['admin_key']}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: list[dict[str, Any]] = json.loads(answer.read())["reconciliation"].get("differences", [])
    return found


def test_tickets_that_cannot_be_run_are_dead_with_their_reason(odd_platform: Platform) -> None:
    async def feed() -> None:
        async with connect_bus(odd_platform.facts["nats_url"], "test") as bus:
            subject = names.task_subject("synthetic")
            bad = {await _publish(bus, subject, data): name for name, data in odd_messages.tickets()}
            for _ in range(5):
                await _publish(bus, subject, odd_messages.ticket().SerializeToString())

            async def missing() -> set[str]:
                dead = await _dead(bus, names.STREAM_TASKS)
                return {name for sequence, name in bad.items() if sequence not in dead}

            async def all_dead() -> bool:
                return not await missing()

            await until(all_dead)
            consumer = names.task_consumer("synthetic")

            async def acknowledged() -> bool:
                info = await bus.js.consumer_info(names.STREAM_TASKS, consumer)
                return not info.num_pending

            await until(acknowledged)

    with _unharmed(odd_platform):
        asyncio.run(feed())


def test_entries_of_buckets_that_make_no_sense_change_nothing(odd_platform: Platform) -> None:
    async def feed() -> None:
        async with connect_bus(odd_platform.facts["nats_url"], "test") as bus:
            models = await bus.js.key_value(names.KV_MODELS)
            good = (await models.get("synthetic")).value
            assert good is not None
            for number, data in enumerate(odd_messages.manifests()):
                await _publish(bus, f"$KV.{names.KV_MODELS}.odd-{number}", data)
                await _publish(bus, f"$KV.{names.KV_MODELS}.odd.with.dots.{number}", data)
                if b'"synthetic"' not in data:
                    await _publish(bus, f"$KV.{names.KV_MODELS}.synthetic", data)
            await bus.js.publish(
                f"$KV.{names.KV_MODELS}.odd-0", b"x", headers={"KV-Operation": "NONE", "Nats-TTL": ""}, timeout=30
            )
            for data in odd_messages.worker_states():
                await _publish(bus, f"$KV.{names.KV_WORKERS}.odd", data)
            for data in odd_messages.GARBAGE.values():
                await _publish(bus, f"$KV.{names.KV_FLEET}.synthetic", data)
                await _publish(bus, names.decision_subject("odd"), data)
                await _publish(bus, "dead.NONE", data)
                await bus.js.publish(
                    names.dead_subject(names.STREAM_USAGE), data, headers={names.HEADER_DEAD_SEQUENCE: "-x"}, timeout=30
                )
            assert odd_platform.cli("models", "list")
            await models.put("synthetic", good)
            for number, _ in enumerate(odd_messages.manifests()):
                await models.delete(f"odd-{number}")
                await models.delete(f"odd.with.dots.{number}")

    with _unharmed(odd_platform):
        asyncio.run(feed())
        _reconciled(odd_platform)


def test_messages_of_core_nats_that_make_no_sense_are_dropped(odd_platform: Platform) -> None:
    async def feed() -> None:
        async with connect_bus(odd_platform.facts["nats_url"], "test") as bus:
            heard: set[str] = set()

            async def on_message(message: Any) -> None:
                heard.add(message.subject)
                if message.reply:
                    heard.add(message.reply)

            await bus.subscribe("offers.>", cb=on_message)
            await bus.subscribe("_INBOX.>", cb=on_message)
            chance = random.Random(1)
            for subject, odd in odd_messages.CORE.items():
                for data in (*odd, *odd_messages.GARBAGE.values(), chance.randbytes(1000)):
                    await bus.publish_core(subject, data)
            await until(lambda: len(heard) > 50)
            mine = {subject for subject in heard if not subject.startswith("$JS")}
            for subject in sorted(mine)[:200]:
                for data in odd_messages.offers():
                    if len(data) < 10_000:
                        await bus.publish_core(subject, data, reply="nobody.listens")
                for number in ("", ".ack", ".0", ".0.ack", ".x.y.z"):
                    await bus.publish_core(subject + number, b"\xff\0", headers={"odd": "x"})
            await bus.flush(30)

    with _unharmed(odd_platform):
        asyncio.run(feed())


def test_entries_of_valkey_that_make_no_sense_are_replaced(odd_platform: Platform) -> None:
    async def feed() -> None:
        redis = Redis.from_url(odd_platform.facts["redis_url"])
        try:
            for data in (b"", b"x", b"1-2", b"-1--1-x", b"\xff\xfe", b"9" * 400 + b"-1500-00000000"):
                await redis.set(names.STORE_EPOCH_KEY, data)

                async def replaced(data: bytes = data) -> bool:
                    found = await redis.get(names.STORE_EPOCH_KEY)
                    return found not in (None, data)

                await until(replaced)
            async for key in redis.scan_iter("authz:key:*"):
                await redis.set(key, b"\xff" * 100)
        finally:
            await redis.aclose()

    with _unharmed(odd_platform):
        asyncio.run(feed())


ODD_USAGE = [
    '{"prompt_tokens": 100, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 800}}',
    '{"prompt_tokens": 7, "completion_tokens": -1}',
    '{"prompt_tokens": -7, "completion_tokens": 1}',
    '{"prompt_tokens": 7, "completion_tokens": 1000000000000}',
    '{"prompt_tokens": 4294967296, "completion_tokens": 4294967296}',
    '{"prompt_tokens": 7, "completion_tokens": 9223372036854775807}',
    '{"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": -800}}',
    '{"prompt_tokens": 1e300, "completion_tokens": 3}',
    '{"prompt_tokens": "7", "completion_tokens": 0.5}',
    '{"prompt_tokens": null, "completion_tokens": null}',
    "7",
    '"x"',
]


def test_an_upstreams_numbers_touch_no_other_request(odd_platform: Platform, tmp_path: Path) -> None:
    def ask(usage: str) -> int:
        body = {"model": "remote", "messages": [{"role": "user", "content": usage}]}
        request = urllib.request.Request(
            f"{odd_platform.facts['base_url']}/chat/completions",
            data=json.dumps(body).encode(),
            headers={"authorization": f"Bearer {odd_platform.facts['api_key']}", "content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    async def settled() -> None:
        async with connect_bus(odd_platform.facts["nats_url"], "test") as bus:

            async def all_settled() -> bool:
                tickets = await bus.js.consumer_info(names.STREAM_TASKS, names.task_consumer("remote"))
                return not tickets.num_ack_pending and await _settled(bus)

            await until(all_settled)

    with _unharmed(odd_platform):
        for _ in range(2):  # more of them than the worker has slots: each must give its slot back
            for usage in ODD_USAGE:
                assert ask(usage) in (200, 502)
        assert ask('{"prompt_tokens": 7, "completion_tokens": 3}') == 200
        asyncio.run(settled())
