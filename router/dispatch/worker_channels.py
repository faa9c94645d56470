"""Channels to workers: one for each address, opened at its first offer, closed when the worker is gone and idle."""

import logging
import os.path
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias, Union

import grpc.aio
from uplion.dispatch.v1.run_pb2 import RunEvent

from router.dispatch.routing_table import RoutingTable
from rpc.server import NEVER_MS

# Generic in the stubs only. A stream's events are read one by one, a unary call is awaited.
RunCall: TypeAlias = Union["grpc.aio.UnaryStreamCall[bytes, RunEvent]", "grpc.aio.UnaryUnaryCall[bytes, RunEvent]"]
_RUN = "/uplion.dispatch.v1.WorkerService/Run"
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")
_SOCKET = re.compile(r"unix:(/[A-Za-z0-9._/~+-]+)/[A-Za-z0-9_-]+")
_NOWHERE = "unix:/dev/null/refused"  # a run there fails at once, as on a worker that is gone

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Line:
    channel: grpc.aio.Channel
    stream: "grpc.aio.UnaryStreamMultiCallable[bytes, RunEvent]"
    once: "grpc.aio.UnaryUnaryMultiCallable[bytes, RunEvent]"  # the same RPC, read as one event: two thirds of the cost
    calls: "set[RunCall]" = field(default_factory=set)  # held until they are done: grpc.aio cancels a dropped call


class WorkerChannels:
    """Every worker this router talks to. Made by `open`.

    A worker's offer names its address: `host:port`, or, for a router that listens on a Unix socket itself, a socket
    beside it. Any other would let whoever can send an offer choose which program of this machine gets a prompt.
    """

    def __init__(self, listen: str) -> None:
        self._folder = os.path.dirname(listen.removeprefix("unix:")) if listen.startswith("unix:") else None
        self._lines: dict[str, _Line] = {}
        self._options = (
            # No ping judges a worker, whose answer comes when it has time (liveness.py does): no keepalive, which is
            # off by default, and no end of the connection when a probe of the bandwidth is not answered in a minute.
            ("grpc.http2.ping_timeout_ms", NEVER_MS),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_retries", 0),  # a run is retried as a new attempt, never blindly
            ("grpc.use_local_subchannel_pool", 1),
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, listen: str) -> AsyncIterator["WorkerChannels"]:
        """Closes every channel when the block is left; what still runs on one is cut. `listen`: the router's own."""
        workers = cls(listen)
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
            channel = grpc.aio.insecure_channel(self._target(address), options=self._options)
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

    def _target(self, address: str) -> str:
        """The address as gRPC's target, which knows more schemes than an offer may use."""
        if _HOST_AND_PORT.fullmatch(address):
            return f"dns:///{address}"
        if (found := _SOCKET.fullmatch(address)) and found[1] == self._folder:
            return address
        logger.error("a worker offers an address that this router does not call", extra={"address": address[:200]})
        return _NOWHERE

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
