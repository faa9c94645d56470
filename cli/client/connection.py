"""The admin API as the commands use it: gRPC through Envoy's admin listener, with the first admin key."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from cli.options import running
from cli.output import CommandError
from stack.state import State

_STREAM_SECONDS = 3600.0  # of a file that comes in pieces
_TIMEOUT_SECONDS = 10.0


class Admin:
    """One connection to the admin API."""

    def __init__(self, channel: grpc.Channel, key: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {key}"),)

    def call(
        self,
        stub: Callable[[grpc.Channel], Any],
        method: str,
        request: Message,
        *,
        seconds: float = _TIMEOUT_SECONDS,
    ) -> Any:
        """The answer to any call of the admin API."""
        try:
            return getattr(stub(self._channel), method)(request, metadata=self._metadata, timeout=seconds)
        except grpc.RpcError as problem:
            raise CommandError(_sentence(problem)) from problem

    def stream(self, stub: Callable[[grpc.Channel], Any], method: str, request: Message) -> Iterator[Any]:
        """The answers to a call that sends many."""
        call = getattr(stub(self._channel), method)
        try:
            yield from call(request, metadata=self._metadata, timeout=_STREAM_SECONDS)
        except grpc.RpcError as problem:
            raise CommandError(_sentence(problem)) from problem


@contextmanager
def admin(state: State) -> Iterator[Admin]:
    """A connection to the running stack's admin API."""
    address = running(state)["admin_address"]
    key = state.first_key("admin_key")
    with grpc.insecure_channel(address) as channel:
        yield Admin(channel, key)


def _sentence(problem: grpc.RpcError) -> str:
    if not isinstance(problem, grpc.Call):
        return str(problem)
    code, details = problem.code(), problem.details()
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"the admin API does not answer now ({details}); look at: uplion status"
    return details or code.name.lower()


def shown_time(message: Message, field: str) -> str | None:
    """A moment in RFC 3339; None when it is unset."""
    if not message.HasField(field):
        return None
    timestamp: Timestamp = getattr(message, field)
    return timestamp.ToJsonString()
