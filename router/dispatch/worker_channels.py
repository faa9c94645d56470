"""Channels to workers: one for each address, opened at its first offer, closed when the worker is gone and idle."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias, Union

import grpc.aio
from uplion.dispatch.v1.run_pb2 import RunEvent

from router.dispatch.routing_table import RoutingTable

# Generic in the stubs only. A stream's events are read one by one, a unary call is awaited.
RunCall: TypeAlias = Union["grpc.aio.UnaryStreamCall[bytes, RunEvent]", "grpc.aio.UnaryUnaryCall[bytes, RunEvent]"]
_RUN = "/uplion.dispatch.v1.WorkerService/Run"


@dataclass(slots=True)
class _Line:
    channel: grpc.aio.Channel
    stream: "grpc.aio.UnaryStreamMultiCallable[bytes, RunEvent]"
    once: "grpc.aio.UnaryUnaryMultiCallable[bytes, RunEvent]"  # the same RPC, read as one event: two thirds of the cost
    calls: "set[RunCall]" = field(default_factory=set)  # held until they are done: grpc.aio cancels a dropped call


class WorkerChannels:
    """Every worker this router talks to. Made by `open`."""

    def __init__(self, keepalive_seconds: float) -> None:
        milliseconds = int(keepalive_seconds * 1000)
        self._lines: dict[str, _Line] = {}
        self._options = (
            ("grpc.keepalive_time_ms", milliseconds),
            ("grpc.keepalive_timeout_ms", milliseconds),
            ("grpc.http2.ping_timeout_ms", milliseconds),  # without it a stopped process was lost after 60 s only
            ("grpc.keepalive_permit_without_calls", 0),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_retries", 0),  # a run is retried as a new attempt, never blindly
            ("grpc.use_local_subchannel_pool", 1),
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, keepalive_seconds: float) -> AsyncIterator["WorkerChannels"]:
        """Closes every channel when the block is left; what still runs on one is cut."""
        workers = cls(keepalive_seconds)
        try:
            yield workers
        finally:
            for line in workers._lines.values():
                await line.channel.close()

    def run(
        self, address: str, request: bytes, timeout_seconds: float, metadata: dict[str, str], *, once: bool
    ) -> RunCall:
        """Starts a run on a worker with a serialized RunRequest, which says `once` too.

        The call ends by itself after its last event, or when it is cancelled.
        """
        line = self._lines.get(address)
        if line is None:
            channel = grpc.aio.insecure_channel(address, options=self._options)
            stream: grpc.aio.UnaryStreamMultiCallable[bytes, RunEvent] = channel.unary_stream(
                _RUN, response_deserializer=RunEvent.FromString
            )
            unary: grpc.aio.UnaryUnaryMultiCallable[bytes, RunEvent] = channel.unary_unary(
                _RUN, response_deserializer=RunEvent.FromString
            )
            line = self._lines[address] = _Line(channel, stream, unary)
        method = line.once if once else line.stream
        call: RunCall = method(request, timeout=timeout_seconds, metadata=tuple(metadata.items()))
        line.calls.add(call)
        call.add_done_callback(line.calls.discard)
        return call

    async def close_idle(self, models: RoutingTable) -> None:
        """Closes idle channels to workers that are gone, after each change of the routing table; never returns."""
        while True:
            await models.changed.wait()
            models.changed.clear()
            await self._forget_all_but(models.snapshot.addresses)

    async def _forget_all_but(self, addresses: frozenset[str]) -> None:
        idle = [address for address, line in self._lines.items() if address not in addresses and not line.calls]
        for address in idle:
            await self._lines.pop(address).channel.close()
