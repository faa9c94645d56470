"""A gRPC server with health checking that drains when its block is left."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from rpc.interceptors import MaskingInterceptor

NEVER_MS = (1 << 31) - 1  # as gRPC understands it
_FAILED_GRACE_SECONDS = 1.0


@asynccontextmanager
async def grpc_server(
    listen: str,
    register: Callable[[grpc.aio.Server], None],
    *,
    drain_seconds: float = 0.0,
    grace_seconds: float = 30.0,
    options: Sequence[tuple[str, int]] = (),
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> AsyncIterator[str]:
    """Serves at `host:port` or `unix:/path` until the block is left; yields where it is bound (so port 0 works).

    Health is SERVING while the block runs. Leaving drains: NOT_SERVING, wait `drain_seconds` for balancers to notice,
    refuse new calls, let running ones finish within `grace_seconds`. Where the block fails, it does so within a second:
    what has failed is started again, and must not wait for its longest stream.
    """
    server = grpc.aio.server(
        interceptors=[*interceptors, MaskingInterceptor()],
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", 20_000),
            # What the edge lets through (32 kB) must not be refused here: grpc's own limits are 8 and 16 kB.
            ("grpc.max_metadata_size", 48 << 10),
            ("grpc.absolute_max_metadata_size", 64 << 10),
            ("grpc.http2.ping_timeout_ms", NEVER_MS),  # a busy peer answers late, and one that is gone has no streams
            *options,
        ],
    )
    register(server)
    serving = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(serving, server)
    await serving.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    bound = _bind(server, listen)
    await server.start()
    failed = True
    try:
        await serving.set("", health_pb2.HealthCheckResponse.SERVING)
        yield bound
        failed = False
    finally:
        if failed:
            drain_seconds, grace_seconds = 0.0, min(grace_seconds, _FAILED_GRACE_SECONDS)
        await serving.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        await asyncio.sleep(drain_seconds)
        await server.stop(grace_seconds)


def _bind(server: grpc.aio.Server, listen: str) -> str:
    """Binds, and returns the address with its port. Whoever may write to a socket may call: never all users."""
    if not listen.startswith("unix:"):
        return f"{listen.rpartition(':')[0]}:{server.add_insecure_port(listen)}"
    before = os.umask(0o077)
    try:
        os.umask(before | 0o007)
        server.add_insecure_port(listen)
    finally:
        os.umask(before)
    return listen
