"""The admin API as the commands use it: gRPC through Envoy's admin listener, with the first admin key."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from cli.options import running
from cli.output import CommandError
from stack.state import State


class ListRequest(Protocol):
    """Asks for a page of a list."""

    page_size: int
    page_token: str


class ListResponse(Protocol):
    """A page of a list."""

    next_page_token: str


Stub = TypeVar("Stub")
Request = TypeVar("Request")
Response = TypeVar("Response")
List = TypeVar("List", bound=ListRequest)
Page = TypeVar("Page", bound=ListResponse)

_STREAM_SECONDS = 3600.0  # of a file that comes in pieces
_TIMEOUT_SECONDS = 10.0
_PAGE_SIZE = 1000


class Admin:
    """One connection to the admin API."""

    def __init__(self, channel: grpc.Channel, key: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {key}"),)

    def stub(self, of: Callable[[grpc.Channel], Stub]) -> Stub:
        """A service's stub on this connection; its methods are for `call` and `stream`."""
        return of(self._channel)

    def call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        *,
        seconds: float = _TIMEOUT_SECONDS,
    ) -> Response:
        """The answer; a refusal or failure is a CommandError."""
        try:
            return method(request, metadata=self._metadata, timeout=seconds)
        except grpc.RpcError as problem:
            raise CommandError(_sentence(problem)) from problem

    def stream(
        self, method: "grpc.UnaryStreamMultiCallable[Request, Response]", request: Request
    ) -> Iterator[Response]:
        """The answers to a call that streams them."""
        try:
            yield from method(request, metadata=self._metadata, timeout=_STREAM_SECONDS)
        except grpc.RpcError as problem:
            raise CommandError(_sentence(problem)) from problem

    def pages(self, method: "grpc.UnaryUnaryMultiCallable[List, Page]", request: List) -> Iterator[Page]:
        """Every page of a list."""
        request.page_size = _PAGE_SIZE
        while True:
            page = self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


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
    """A time in RFC 3339; None when it is unset."""
    if not message.HasField(field):
        return None
    timestamp: Timestamp = getattr(message, field)
    return timestamp.ToJsonString()
