"""Fills a USAGE stream, lets real billing processes empty it, and prints what an event took. Markdown."""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import uvloop
from nats.js.errors import NotFoundError

from bench import processes
from bench.billing.servers import POSTGRES_SETTINGS, Machine, machine
from bench.billing.stream import Filled, Shape, fill
from common import names
from control.schema.migrate import migrate
from messaging.bus import Bus, connect_bus

_PREFILL = """
    INSERT INTO usage_events (request_id, attempt, month, account, project, key, model, model_served, model_revision,
        provider, lane, tier, operation, status, finish_reason, error_reason, input_tokens, cached_tokens,
        cache_write_tokens, output_tokens, reasoning_tokens, queue_seconds, first_token_seconds, duration_seconds,
        compute_seconds, end_time, last, reservation, price_version, cost, currency, policy, link)
    SELECT gen_random_uuid()::text, 1, date_trunc('month', now() AT TIME ZONE 'UTC'), 'acc-old', '', 'acc-old-key00',
        'model-0', 'model-0', 7, 'transformers', 'default', 'default', 'chat', 'completed', 'stop', '', 2000, 1000, 0,
        400, 0, 0.01, 0.2, 2.5, 0.25, now() - random() * interval '1 day', true, 'sixteen-and-more-chars', 1,
        0.123456789012345678, 'EUR', '', 1
    FROM generate_series(1, $1::bigint)
"""
_PRICES = """
    INSERT INTO prices (model, effective_from, currency, input_per_million_tokens, cached_per_million_tokens,
        output_per_million_tokens, per_gpu_second)
    SELECT 'model-' || number, '2025-01-01', 'EUR', 0.5, 0.05, 1.5, 0.0001 FROM generate_series(0, 99) AS number
"""
_LEDGER_BYTES = "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('usage_events') WHERE isleaf"


@dataclass(frozen=True, slots=True)
class Run:
    """One stream emptied."""

    rows_before: int
    filled: Filled
    seconds: float
    cpu_seconds: dict[str, float]
    wal_bytes: int
    ledger_bytes: int

    def line(self) -> str:
        events = self.filled.events
        cpu = sum(self.cpu_seconds.values())
        cells = [
            f"{self.rows_before:,}",
            f"{events:,}",
            f"{events / self.seconds:,.0f}",
            *(f"{self.cpu_seconds[part] / events * 1e6:.1f}" for part in ("billing", "postgres", "nats", "valkey")),
            f"{cpu / events * 1e6:.1f}",
            f"{cpu / self.seconds:.2f}",
            f"{self.wal_bytes / events:,.0f}",
            f"{self.ledger_bytes / events:,.0f}",
            f"{(self.wal_bytes + self.ledger_bytes) / self.filled.event_bytes:.1f}",
        ]
        return "| " + " | ".join(cells) + " |"


_HEAD = (
    "| rows before | events | events/s | billing us | postgres us | nats us | valkey us | CPU us/event | cores |"
    " WAL bytes/event | ledger bytes/event | write amplification |"
)


async def _run(arguments: argparse.Namespace, folder: Path) -> None:
    shape = Shape(arguments.accounts, arguments.keys, arguments.models)
    settings = {} if arguments.batch is None else {"lag_batch_events": arguments.batch}
    async with machine(folder, settings) as servers, connect_bus(servers.nats_url, "bench", connect_seconds=20) as bus:
        connection = await asyncpg.connect(servers.postgres_url)
        await migrate(connection)
        await connection.execute(_PRICES)
        await connection.execute("SELECT ensure_usage_partition(date_trunc('month', now() AT TIME ZONE 'UTC')::date)")
        await bus.ensure_streams()
        print(f"Machine: {processes.machine()}; Python {sys.version.split()[0]}; load {os.getloadavg()[0]:.1f}.")
        print(f"{arguments.processes} billing process(es); {shape}; Postgres {POSTGRES_SETTINGS}.\n")
        print(_HEAD + "\n" + "| --- " * _HEAD.count(" | ") + "| --- |", flush=True)
        await _empty(servers, bus, connection, arguments, shape, events=20_000, seed=0)  # warm up
        for seed, rows in enumerate(arguments.rows, start=1):
            missing = rows - await connection.fetchval("SELECT count(*) FROM usage_events")
            if missing > 0:
                await connection.execute(_PREFILL, missing, timeout=3600)
                await connection.execute("VACUUM ANALYZE usage_events", timeout=3600)
            await connection.execute("CHECKPOINT", timeout=600)
            run = await _empty(servers, bus, connection, arguments, shape, events=arguments.events, seed=seed)
            print(run.line(), flush=True)
        await _yardstick(servers, connection)
        await connection.close()


async def _empty(
    servers: Machine,
    bus: Bus,
    connection: "asyncpg.Connection[asyncpg.Record]",
    arguments: argparse.Namespace,
    shape: Shape,
    *,
    events: int,
    seed: int,
) -> Run:
    await bus.js.purge_stream(names.STREAM_USAGE)
    with suppress(NotFoundError):
        await bus.js.delete_consumer(names.STREAM_USAGE, names.CONSUMER_BILLING)
    filled = await fill(bus, events, shape, seed)
    rows = await connection.fetchval("SELECT count(*) FROM usage_events")
    async with servers.billing(arguments.processes):
        began, cpu = time.monotonic(), servers.cpu_seconds()
        wal, size = await _wal_bytes(connection), await connection.fetchval(_LEDGER_BYTES)
        while True:
            await asyncio.sleep(0.05)
            state = await bus.js.consumer_info(names.STREAM_USAGE, names.CONSUMER_BILLING)
            if state.num_pending == 0 and state.num_ack_pending == 0:
                break
        seconds = time.monotonic() - began
        used = {part: after - cpu[part] for part, after in servers.cpu_seconds().items()}
        wal, size = await _wal_bytes(connection) - wal, await connection.fetchval(_LEDGER_BYTES) - size
    found = await connection.fetchval("SELECT count(*) FROM usage_events")
    assert found == rows + events, f"{found} rows instead of {rows + events}"
    return Run(rows, filled, seconds, used, wal, size)


async def _wal_bytes(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    return int(await connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


async def _yardstick(servers: Machine, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """The last rows again, by a bare COPY of finished bytes into a table without any index."""
    rows = 100_000
    parts: list[bytes] = []

    async def keep(data: bytes) -> None:
        parts.append(bytes(data))

    await connection.copy_from_query(
        f"SELECT * FROM usage_events ORDER BY record_time DESC LIMIT {rows}", output=keep, format="binary"
    )
    await connection.execute("CREATE TABLE yardstick (LIKE usage_events)")
    before, began = servers.cpu_seconds()["postgres"], time.monotonic()
    status = await connection.copy_to_table("yardstick", source=_chunks(parts), format="binary")
    seconds, cpu = time.monotonic() - began, servers.cpu_seconds()["postgres"] - before
    rows = int(status.split()[1])
    print(
        f"\nYardstick, a bare COPY of such rows: {rows / seconds:,.0f} rows/s, {cpu / rows * 1e6:.1f} us of Postgres."
    )


async def _chunks(parts: list[bytes]):  # type: ignore[no-untyped-def]
    joined = b"".join(parts)
    for start in range(0, len(joined), 1 << 16):
        yield joined[start : start + (1 << 16)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.billing", description=__doc__)
    parser.add_argument("--events", type=int, default=200_000, help="in the stream, each time")
    parser.add_argument("--processes", type=int, default=2, help="billing processes")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000], help="sizes of the ledger before a run")
    parser.add_argument("--batch", type=int, help="largest batch; billing's own setting by default")
    parser.add_argument("--accounts", type=int, default=100)
    parser.add_argument("--keys", type=int, default=5, help="of each account")
    parser.add_argument("--models", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="uplion-bench-") as folder:
        uvloop.run(_run(arguments, Path(folder)))


if __name__ == "__main__":
    main()
