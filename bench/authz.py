"""`python -m bench.authz`: one authz process on one core with real Valkey, Postgres and NATS; prints Markdown.

Every check comes over gRPC as Envoy sends it, from two client processes on the other cores, over keys with no limit,
one limit and six. CPU per check is the figure to compare with the bare echo beside it, which is taken on the same
machine in the same minute: grpc.aio alone takes that much for a call that does nothing.
"""

import asyncio
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import asyncpg
import grpc.aio
import msgspec
import uvloop
from envoy.service.auth.v3 import external_auth_pb2 as auth

from authz.settings import AuthzSettings
from bench import processes
from bench.yardstick import echo_cpu_us
from common import names
from common.operations import FACTS_NAMESPACE
from common.settings import dump
from control.schema.migrate import migrate
from credentials import api_keys
from ledger.limits import Limit
from stack.embedded import servers
from stack.ports import free_port

KEYS = 100_000
_HOT_KEYS = 500  # of each kind, in the runs that measure speed
_SECONDS = 8.0
_COLD_SECONDS = 120.0  # at most, to ask for every key once
_CLIENTS = 2
_AT_ONCE = 32  # per client
_PEPPER = b"bench"
_CHECK = "/envoy.service.auth.v3.Authorization/Check"
_MOST = 1 << 50
KINDS: dict[str, tuple[list[Limit], list[Limit]]] = {  # of the account, of the key
    "no limit": ([], []),
    "one limit": ([], [Limit("tokens", "life", _MOST)]),
    "six limits": (
        [Limit("requests", "minute", _MOST), Limit("tokens", "minute", _MOST), Limit("tokens", "month", _MOST)],
        [Limit("requests", "minute", _MOST), Limit("tokens", "day", _MOST), Limit("concurrency", "", _MOST)],
    ),
}


@dataclass
class Load:
    """What clients are to do, and what they saw."""

    address: str
    texts: Sequence[str]
    seconds: float
    rate: float = 0.0  # of all clients together; 0: as fast as it goes
    once: bool = False  # each key once, as fast as it goes
    latencies: list[float] = field(default_factory=list)  # seconds
    failures: int = 0


def main() -> None:
    """Starts everything, loads it, prints, ends it."""
    with tempfile.TemporaryDirectory(prefix="uplion-bench-") as folder:
        uvloop.run(_bench(Path(folder)))


async def _bench(folder: Path) -> None:
    made = [
        kind(folder / kind.name, folder / f"{kind.name}.log", free_port(), "bench")
        for kind in (servers.Postgres, servers.Valkey, servers.Nats)
    ]
    running = await asyncio.gather(*(servers.start(server) for server in made))
    postgres, valkey, nats = made
    cores = sorted(os.sched_getaffinity(0))
    settings = AuthzSettings(
        postgres_url=postgres.url,
        redis_url=valkey.url,
        nats_url=nats.url,
        peppers=(f"p1:{_PEPPER.decode()}",),
        proof_keys=(f"p1:{token_urlsafe(32)}",),
        limits_seconds=5.0,
        lookup_seconds=5.0,
    )
    texts = await _fill(postgres.url)
    authz, address = _start(settings, folder / "authz.log")
    try:
        os.sched_setaffinity(authz.pid, cores[:1])
        if len(cores) > 1:
            os.sched_setaffinity(0, cores[1:])  # and so of every process we start
        await _report(authz.pid, running[1].pid, address, texts)
    finally:
        authz.terminate()
        authz.wait(20)
        for process in running:
            await process.stop(10)


async def _report(authz: int, valkey: int, address: str, texts: dict[str, list[str]]) -> None:
    print(f"Machine: {processes.machine()}; Python {sys.version.split()[0]}; load average {os.getloadavg()[0]:.1f}.\n")
    print(
        "| keys with | checks/s on one core | CPU of authz per check (us) | of a bare echo (us) | times the echo |",
        end="",
    )
    print(" CPU of Valkey per check (us) | p99 at half that rate (ms) | failures |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    empty = processes.resident_mib(authz)[0]
    for kind, every in texts.items():
        hot = every[:_HOT_KEYS]
        await _drive(Load(address, hot, 2.0))  # warm up
        echo = await asyncio.to_thread(echo_cpu_us)
        before = processes.cpu_seconds(authz), processes.cpu_seconds(valkey)
        full = await _drive(Load(address, hot, _SECONDS))
        checks = max(1, len(full.latencies))
        used = [
            (processes.cpu_seconds(pid) - was) / checks * 1e6 for pid, was in zip((authz, valkey), before, strict=True)
        ]
        rate = checks / _SECONDS
        half = await _drive(Load(address, hot, _SECONDS, rate / 2))
        p99 = sorted(half.latencies)[int(0.99 * len(half.latencies))] * 1000
        print(
            f"| {kind} | {rate:,.0f} | {used[0]:.0f} | {echo:.0f} | {used[0] / echo:.2f} | {used[1]:.0f} | {p99:.1f} |"
            f" {full.failures + half.failures} |"
        )
    warm = processes.resident_mib(authz)[0]
    began = time.monotonic()
    rest = [text for every in texts.values() for text in every[_HOT_KEYS:]]
    cold = await _drive(Load(address, rest, _COLD_SECONDS, once=True))
    seconds = time.monotonic() - began
    print(
        f"\nMemory of authz (resident): {empty:.0f} MiB with no key, {warm:.0f} MiB after the runs above, "
        f"{processes.resident_mib(authz)[0]:.0f} MiB with {len(cold.latencies) + len(texts) * _HOT_KEYS:,} keys known "
        f"({len(cold.latencies) / seconds:,.0f} cold keys/s, {cold.failures} failures)."
    )


async def _drive(load: Load) -> Load:
    """The load from several processes."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for number in range(_CLIENTS):
        ours, theirs = context.Pipe()
        part = Load(load.address, load.texts[number::_CLIENTS], load.seconds, load.rate / _CLIENTS, load.once)
        process = context.Process(target=_client, args=(theirs, part), daemon=True)
        process.start()
        pipes.append((process, ours))
    for process, ours in pipes:
        seen: Load = await asyncio.to_thread(ours.recv)
        load.latencies += seen.latencies
        load.failures += seen.failures
        process.join(10)
    return load


def _client(pipe: Connection, load: Load) -> None:
    uvloop.run(_ask(load))
    pipe.send(load)


async def _ask(load: Load) -> None:
    requests = [_request(text) for text in load.texts]
    async with grpc.aio.insecure_channel(load.address) as channel:
        check: Any = channel.unary_unary(_CHECK)  # bytes in and out: the client's own parsing is not measured
        metadata = ((names.HEADER_LISTENER, names.LISTENER_PUBLIC),)

        async def one(request: bytes) -> None:
            sent = time.perf_counter()
            try:
                answer = await check(request, metadata=metadata, timeout=20)
                if _DENIED in answer:
                    load.failures += 1
                else:
                    load.latencies.append(time.perf_counter() - sent)
            except grpc.aio.AioRpcError:
                load.failures += 1

        end = time.perf_counter() + load.seconds
        if load.once:
            todo = iter(requests)

            async def each() -> None:
                for request in todo:
                    await one(request)
                    if time.perf_counter() > end:
                        return

            await asyncio.gather(*(each() for _ in range(_AT_ONCE)))
            return
        await one(requests[0])  # connects
        load.latencies.clear()
        if load.rate:
            await _paced(load, requests, one, end)
            return

        async def some() -> None:
            while time.perf_counter() < end:
                await one(random.choice(requests))

        await asyncio.gather(*(some() for _ in range(_AT_ONCE)))


async def _paced(load: Load, requests: list[bytes], one: Any, end: float) -> None:
    """At a steady rate, however long the answers take."""
    async with asyncio.TaskGroup() as tasks:
        due = time.perf_counter()
        while due < end:
            tasks.create_task(one(random.choice(requests)), name="check")
            due += random.expovariate(load.rate)
            if (left := due - time.perf_counter()) > 0:
                await asyncio.sleep(left)


_DENIED = b'"error"'


def _request(text: str) -> bytes:
    """As Envoy asks about a chat of an OpenAI client."""
    request = auth.CheckRequest()
    http = request.attributes.request.http
    http.method, http.path, http.size = "POST", "/v1/chat/completions", 600
    http.headers["content-type"] = "application/json"
    http.headers["content-length"] = "600"
    http.headers["authorization"] = f"Bearer {text}"
    http.headers[names.HEADER_MODEL] = "bench"
    http.headers[names.HEADER_REQUEST_ID] = "00000000-0000-0000-0000-000000000000"
    http.headers[names.HEADER_CLIENT] = "192.0.2.1"
    fields = request.attributes.metadata_context.filter_metadata[FACTS_NAMESPACE].fields
    fields["model"].string_value, fields["max_tokens"].number_value = "bench", 100
    return bytes(request.SerializeToString())


async def _fill(url: str) -> dict[str, list[str]]:
    """Accounts of a hundred keys each; the keys' texts by kind."""
    texts: dict[str, list[str]] = {kind: [] for kind in KINDS}
    accounts, rows = [], []
    kinds = list(KINDS)
    for number in range(KEYS):
        kind = kinds[number // 100 % len(kinds)]
        account = f"acc-{number // 100}"
        if number % 100 == 0:
            accounts.append((account, account, msgspec.json.encode(KINDS[kind][0]).decode()))
        key = api_keys.generate()
        texts[kind].append(key.text)
        limits = msgspec.json.encode(KINDS[kind][1]).decode()
        rows.append((key.id, account, ["inference"], limits, api_keys.digest(key.secret, _PEPPER), "p1", "abcd"))
    connection = await asyncpg.connect(url)
    try:
        await migrate(connection)
        await connection.copy_records_to_table("accounts", records=accounts, columns=["id", "name", "limits"])
        columns = ["id", "account", "scopes", "limits", "digest", "pepper_id", "last_four"]
        await connection.copy_records_to_table("keys", records=rows, columns=columns)
    finally:
        await connection.close()
    return texts


def _start(settings: AuthzSettings, log: Path) -> tuple["subprocess.Popen[bytes]", str]:
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "authz"], env={**os.environ, **dump(settings)}, stdout=output)
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if '"ready"' in line:
                return process, line.partition('"address": "')[2].partition('"')[0]
        time.sleep(0.1)
    sys.exit("authz did not start")


if __name__ == "__main__":
    main()
