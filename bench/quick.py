"""`make bench-quick`: the whole path with the synthetic engine, in under 90 s. Prints the figures as Markdown."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from bench import processes
from bench.load import Outcome, drive, request_bytes
from bench.yardstick import echo_cpu_us
from stack.ports import free_port

MANIFEST = Path(__file__).with_name("synthetic.yaml")
MODEL = "bench"  # answers at once: what the platform itself takes
STREAM_MODEL = "bench-stream"  # a token every 10 ms, for each stream
_RUN_SECONDS = 8.0


def main() -> None:
    """Starts a platform, loads it, prints, ends it."""
    echo = echo_cpu_us()
    with tempfile.TemporaryDirectory(prefix="uplion-bench-") as state:
        began = time.monotonic()
        platform = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("uplion")), "up", "--json"),
                *("--state", state, "--port", str(free_port()), "-f", str(MANIFEST)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert platform.stdout is not None
            line = platform.stdout.readline()
            if not line:
                sys.exit("the platform did not start")
            start_seconds = time.monotonic() - began
            uvloop.run(_measure(json.loads(line), start_seconds, echo))
        finally:
            platform.send_signal(signal.SIGTERM)
            platform.wait(30)


async def _measure(facts: dict[str, Any], start_seconds: float, echo_us: float) -> None:
    base_url, key = facts["base_url"], facts["api_key"]
    parts: dict[int, str] = {}
    for name, pid in facts["pids"].items():
        parts[pid] = f"{parts[pid]}, {name}" if pid in parts else name
    idle = {pid: processes.resident_mib(pid) for pid in parts}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 16}
    whole = request_bytes(base_url, "/chat/completions", key, body)
    streamed = request_bytes(
        base_url, "/chat/completions", key, {**body, "model": STREAM_MODEL, "stream": True, "max_tokens": 200}
    )

    async def run(request: bytes, connections: int, seconds: float = _RUN_SECONDS) -> Outcome:
        return await drive(base_url, request, connections=connections, seconds=seconds)

    await run(whole, 16, 2.0)  # warm up
    alone = await run(whole, 1)
    before = {pid: processes.cpu_seconds(pid) for pid in parts}
    client_before = time.process_time()
    busy = await run(whole, 16)
    client = time.process_time() - client_before
    used = {pid: processes.cpu_seconds(pid) - before[pid] for pid in parts}
    stream = await run(streamed, 64)

    print(f"Machine: {processes.machine()}; Python {sys.version.split()[0]}; load average {os.getloadavg()[0]:.1f}.\n")
    print("| what | figure |\n| --- | --- |")
    print(f"| yardstick: server CPU of a bare grpc.aio echo (docs/benchmarks.md) | {echo_us:.0f} us |")
    print(f"| `uplion up` to ready, first start | {start_seconds:.1f} s |")
    for name, outcome in (("1", alone), ("16", busy)):
        print(
            f"| chat, 16 tokens, concurrency {name} | {outcome.rate:,.0f} requests/s, p50 "
            f"{outcome.percentile(0.5) * 1000:.2f} ms, p99 {outcome.percentile(0.99) * 1000:.2f} ms |"
        )
    print(f"| 64 streams of 200 tokens, a token each 10 ms | {stream.chunks / stream.seconds:,.0f} chunks/s |")
    print(f"| failures | {alone.failures + busy.failures + stream.failures} |")
    print("\n| process | CPU per request at concurrency 16 (us) | resident / proportional memory when idle (MiB) |")
    print("| --- | --- | --- |")
    requests = max(1, len(busy.latencies))
    for pid, name in parts.items():
        resident, proportional = idle[pid]
        print(f"| {name} | {used[pid] / requests * 1e6:,.0f} | {resident:.0f} / {proportional:.0f} |")
    print(f"| the load client | {client / requests * 1e6:,.0f} | |")
    total = sum(used.values()) + client
    print(
        f"| all | {total / requests * 1e6:,.0f} | {sum(value[0] for value in idle.values()):.0f} / "
        f"{sum(value[1] for value in idle.values()):.0f} |"
    )


if __name__ == "__main__":
    main()
